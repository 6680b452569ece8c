"""Pixels: safe decoding and encoding, provenance, the offline cut-out, measuring, composing.

Everything here is a pure function on bytes or arrays that takes CPU time: callers run it in a thread.
The house type of a picture is `codec.Picture`: a numpy uint8 array, h x w x 3 (RGB) or h x w x 4 (RGBA,
alpha not premultiplied), always sRGB and upright.
"""
