"""Jobs over HTTP."""

from __future__ import annotations

from tests.api.conftest import Api


async def test_created_job_can_be_read(api: Api) -> None:
    created = await api.create(metadata={"a": 1}, tags=["x"])

    status, job, response = await api.call("GET", f"/v1/jobs/{created['id']}")

    assert 200 == status
    assert response.headers["ETag"] == 'W/"1"'
    assert created | {"queue_position": 0} == job
