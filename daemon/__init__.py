"""listingd: a self-hosted daemon that makes Amazon listing media from one product photo.

Data flows one way: http -> api -> queue -> scheduler -> workers -> handlers -> providers, imaging,
storage -> queue. The job row in Postgres is the only truth; everything in memory may be lost at any
moment and is built again from it. See docs/architecture.md for the shape and the promises.
"""
