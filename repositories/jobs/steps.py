"""What every job goes through, as statements that are built once.

To build a statement costs more than to run it.
"""

from typing import cast

from sqlalchemy import Float, Interval, Table, and_, bindparam, case, func, or_, select, update
from sqlalchemy import cast as cast_to
from sqlalchemy.dialects.postgresql import JSONB, insert

from promptstack.repositories.models import Attempt, Job, JobState

OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)

TAKEN_AT = case((Job.state == JobState.RUNNING, Job.rung_at))
"""When the job's message was sent, if it was taken: of a job that ends in the queue, it wasn't."""


_JOBS = cast("Table", Job.__table__)
_THE_CLAIM = (_JOBS.c.id == bindparam("the_job"), _JOBS.c.attempt == bindparam("the_attempt"))
_GIVEN = (
    "id",
    "kind",
    "queue",
    "provider",
    "model",
    "request",
    "request_hash",
    "user_id",
    "idempotency_key",
    "max_retries",
    "deaths",
    "run_id",
)
_EPOCH = bindparam("epoch", type_=_JOBS.c.rung_epoch.type)
ADD = (
    insert(_JOBS)
    .values(
        {name: bindparam(name, type_=_JOBS.c[name].type) for name in _GIVEN}
        | {
            "rung_epoch": _EPOCH,
            "rung_at": case((_EPOCH.is_not(None), func.now())),
            # Of a run's shard not when its transaction began: the run may have begun anew since.
            "created_at": case(
                (bindparam("run_id", type_=_JOBS.c.run_id.type).is_(None), func.now()),
                else_=func.clock_timestamp(),
            ),
            "expires_at": func.now() + bindparam("lifetime", type_=Interval),
        }
    )
    .on_conflict_do_nothing()
    .returning(*_JOBS.c)
)

_SENT_AT = bindparam("sent_at", type_=_JOBS.c.rung_at.type)

CLAIM = (
    update(_JOBS)
    .where(
        _JOBS.c.id == bindparam("the_job"),
        _JOBS.c.state == JobState.QUEUED,
        or_(_JOBS.c.not_before.is_(None), _JOBS.c.not_before <= func.now()),
        _JOBS.c.expires_at > func.now(),
    )
    .values(
        state=JobState.RUNNING,
        attempt=_JOBS.c.attempt + 1,
        worker_id=bindparam("the_worker"),
        # LEAST passes over NULL, and a message of unknown time must tell nothing.
        rung_at=case((_SENT_AT.is_(None), None), else_=func.least(_SENT_AT, func.now())),
        not_before=None,
        started_at=func.coalesce(_JOBS.c.started_at, func.now()),
    )
    .returning(
        _JOBS.c.id,
        _JOBS.c.attempt,
        _JOBS.c.user_id,
        _JOBS.c.provider,
        _JOBS.c.model,
        _JOBS.c.request,
        _JOBS.c.failures,
        _JOBS.c.max_retries,
        _JOBS.c.deaths,
        _JOBS.c.queue,
        _JOBS.c.run_id,
        func.extract("epoch", _JOBS.c.expires_at - func.clock_timestamp()).label("seconds_left"),
    )
)

CHECK_CLAIM = (
    select(_JOBS.c.id).where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING).with_for_update()
)

_CURRENT = bindparam("the_current", type_=_JOBS.c.current.type)
_TOTAL = bindparam("the_total", type_=_JOBS.c.total.type)
_IS_AS_BEFORE = and_(_JOBS.c.current == _CURRENT, _JOBS.c.total == _TOTAL)
SET_PROGRESS = (
    update(_JOBS)
    .where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING)
    .values(
        current=_CURRENT,
        total=_TOTAL,
        # What gets on does not kill its workers.
        deaths=case((_IS_AS_BEFORE, _JOBS.c.deaths), else_=0),
    )
    .returning(_JOBS.c.id)
)

SHARD_OF = (
    select(
        _JOBS.c.request["first"].as_integer(), _JOBS.c.request["last"].as_integer(), _JOBS.c.deaths
    )
    .where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING)
    .with_for_update()
)

NARROW_SHARD = (
    update(_JOBS)
    .where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING)
    .values(request=bindparam("the_request", type_=JSONB), deaths=bindparam("the_deaths"))
    .returning(_JOBS.c.id)
)

SUCCEED = (
    update(_JOBS)
    .where(*_THE_CLAIM, _JOBS.c.state.in_(OPEN_STATES))
    .values(
        state=JobState.SUCCEEDED,
        rung_at=TAKEN_AT,
        result=bindparam("the_result", type_=JSONB),
        current=_JOBS.c.total,
        error_code=None,
        error=None,
        not_before=None,
        finished_at=func.now(),
    )
    .returning(_JOBS.c.id)
)

STANDING = (
    select(
        _JOBS.c.id,
        _JOBS.c.state,
        _JOBS.c.provider,
        _JOBS.c.model,
        _JOBS.c.current,
        _JOBS.c.total,
        _JOBS.c.attempt,
        _JOBS.c.failures,
        _JOBS.c.error_code,
        _JOBS.c.error,
        _JOBS.c.not_before,
        cast_to(func.extract("epoch", _JOBS.c.not_before - func.clock_timestamp()), Float).label(
            "seconds_until_due"
        ),
        func.count(Attempt.id).label("calls"),
        func.coalesce(
            func.sum(
                func.coalesce(Attempt.input_tokens, 0) + func.coalesce(Attempt.output_tokens, 0)
            ),
            0,
        ).label("tokens"),
    )
    .outerjoin(Attempt, Attempt.job_id == _JOBS.c.id)
    .where(_JOBS.c.id == bindparam("the_job"))
    .group_by(_JOBS.c.id)
)
