"""What each problem code means and what to do about it: the text of the pages at /problems/<code>."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """title: short, the same for every occurrence; advice: what the reader can do."""

    title: str
    advice: str


PAGES: dict[str, Page] = {
    # 400
    "malformed_body": Page(
        "The body is no JSON that is taken",
        "Send one UTF-8 JSON document without NUL, NaN, duplicate keys or lone surrogates, nested at most "
        "32 deep, with strings up to 100,000 characters and numbers up to 100 digits. Photos go to "
        "POST /v1/uploads, not into JSON.",
    ),
    "bad_request": Page(
        "The request cannot be read",
        "Check the request line, the headers and the query string for broken encoding.",
    ),
    # 401, 402, 403
    "unauthenticated": Page(
        "Credentials are missing or not valid",
        "Send `Authorization: Bearer …` with a service key, a user's JWT or a read token.",
    ),
    "token_invalid": Page("The token is not valid", "Ask for a new token or check the key."),
    "token_expired": Page("The token has expired", "Sign in again, or mint a new read token."),
    "budget_spent": Page("The budget is spent", "Raise the budget, or wait for the next day or month (UTC)."),
    "forbidden": Page("The credentials do not allow this", "Use credentials that may do this."),
    "scope_missing": Page(
        "A scope is missing", "Use a key with the scope that the answer names: enqueue, read or admin."
    ),
    "acts_for_itself": Page(
        "A user acts for themselves", "Leave `user_id` out: only a service key may name another user."
    ),
    # 404, 405, 406, 408, 421
    "not_found": Page(
        "There is no such thing",
        "Check the id. Something that belongs to somebody else, or was erased, answers the same.",
    ),
    "method_not_allowed": Page("The method is not allowed here", "See the `Allow` header."),
    "not_acceptable": Page(
        "No such representation",
        "Accept application/json, or the content type that the call is described with.",
    ),
    "request_timeout": Page("The request took too long to arrive", "Send it again over a better connection."),
    "range_unsatisfiable": Page(
        "The file has no such part", "Ask within the size that `Content-Range` says."
    ),
    "expectation_failed": Page("The expectation cannot be met", "Send no `Expect` header."),
    "host_unknown": Page(
        "This host is not served here", "Use a host name that LISTINGD_HTTP__ALLOWED_HOSTS lists."
    ),
    # 409, 410
    "conflict": Page(
        "Not possible in this state", "Read the job: its state has changed, or never allowed this."
    ),
    "job_active": Page("The job is still active", "Cancel it or wait for its end, then erase it."),
    "part_of_pack": Page("The job is part of another one", "Erase its parent as a whole."),
    "not_retryable": Page(
        "The job cannot be retried", "Only failed and cancelled jobs can; see its `state`."
    ),
    "idempotency_in_flight": Page(
        "The same request is in flight", "Wait as long as `Retry-After` says, then send it again."
    ),
    "idempotency_sealed": Page(
        "The answer is sealed", "Ask with the credentials of the first request, or use a new Idempotency-Key."
    ),
    "gone": Page("It is gone", "It was erased or removed after its retention."),
    "position_gone": Page(
        "The position of the stream is gone", "Connect again without `Last-Event-ID`: a snapshot comes first."
    ),
    # 413, 415
    "too_large": Page("The request is too large", "JSON bodies may have 1 MiB, photos 25 MiB."),
    "unsupported_media": Page("The content type is not taken", "JSON calls take application/json alone."),
    "image_pixels": Page(
        "The picture has too many pixels", "Send at most 40 megapixels and 12,000 px a side."
    ),
    "image_bytes": Page("The picture has too many bytes", "Ask for a smaller size_px."),
    "image_unrecognised": Page("This is no picture", "Send the photo as JPEG, PNG or WEBP."),
    "image_format": Page("The picture's format is not taken", "Send the photo as JPEG, PNG or WEBP."),
    "image_animated": Page("The picture moves", "Send a still picture."),
    # 422
    "invalid_input": Page("A field is not valid", "`errors` names each wrong field by its JSON pointer."),
    "nothing_to_change": Page("The request changes nothing", "Say what to change: `paused` or `weight`."),
    "bad_scope": Page("The scope cannot be read", "Ask for job:<id>, project:<id> or user:<id>."),
    "batch_too_large": Page("The batch is too large", "Send at most 1000 jobs at once."),
    "not_storable": Page("A value cannot be stored", "Numbers must fit the database's numeric type."),
    "cursor_invalid": Page("The cursor cannot be read", "Use `next_cursor` of the last page as it is."),
    "idempotency_key_invalid": Page(
        "The Idempotency-Key cannot be read", "Send 1 to 255 printable ASCII characters, bare or in quotes."
    ),
    "idempotency_key_reused": Page(
        "The Idempotency-Key was used for something else", "Use a new key for a new request."
    ),
    "image_empty": Page(
        "The upload has no bytes", "Send the photo's bytes as the body, or as one multipart file."
    ),
    "image_truncated": Page("The picture is cut off", "Send the file again; it ends too early."),
    "image_damaged": Page("The picture is damaged", "Open it in an image program and save it again."),
    "upload_missing": Page("The form holds no file", "Send one file part, in any field."),
    # of failed jobs
    "answers_unusable": Page(
        "The provider's answers could not be used",
        "Two calls were billed and gave no usable picture or text. Try another photo, model or wording, or "
        "retry the job: that pays again.",
    ),
    "outcome_unknown": Page(
        "Whether the provider was paid is not known",
        "Two calls were cut off before their answers came. Look at the provider's usage page, then retry the job.",
    ),
    # 429, 503
    "too_many_requests": Page(
        "Too many requests", "Slow down; `Retry-After` and `RateLimit` say by how much."
    ),
    "too_many_refusals": Page(
        "Too many refused credentials", "Check the key; come back after `Retry-After`."
    ),
    "too_many_open_jobs": Page(
        "Too many unfinished jobs", "Wait until some of the user's jobs have ended, or cancel some."
    ),
    "too_many_streams": Page(
        "Too many event streams are open",
        "Follow all jobs on one GET /v1/events instead of one stream a job.",
    ),
    "unavailable": Page(
        "Not available right now", "Nothing was changed. The same request may succeed after `Retry-After`."
    ),
    "draining": Page(
        "The daemon is stopping", "Send the request again: another daemon or the next start takes it."
    ),
    "too_many_connections": Page(
        "Too many connections are open",
        "Keep connections alive and share them; come back after `Retry-After`.",
    ),
    "storage_refused": Page("The object store refuses access", "An operator must check its credentials."),
    "storage_unavailable": Page("The object store does not answer", "Try again after `Retry-After`."),
    "storage_corrupt": Page("A stored file is damaged", "An operator must restore it; or run the job again."),
    "misconfigured": Page(
        "The daemon is not set up for this", "An operator must change a setting; see the detail."
    ),
    # 500
    "internal": Page("A bug of ours", "Report it with the request id; the log has the rest under that id."),
}
