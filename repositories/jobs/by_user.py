"""Jobs of many users, found user by user: each costs one step in an index, whatever it has."""

NOBODY = "'00000000-0000-0000-0000-000000000000'::uuid"
USER = f"coalesce(jobs.user_id, {NOBODY})"
"""As in the indexes. Jobs without a user are those of the user 0."""


def ring_of_users(condition: str) -> str:
    """A query of `:most` users, and their tiers, with jobs of a condition.

    Those after the user `:last` come first. An index must begin with what the condition names,
    followed by the user.
    """
    return f"""
        WITH RECURSIVE {_walk("later", condition, f"{USER} > :last")},
        {_walk("first", condition, f"{USER} <= :last")}
        SELECT found.user_id, coalesce(users.tier, 'free')
        FROM (SELECT * FROM later UNION ALL SELECT * FROM first) AS found
        LEFT JOIN users ON users.id = found.user_id
        WHERE found.user_id IS NOT NULL LIMIT :most
    """  # noqa: S608 - texts of our own


def taken_by_user(condition: str, order: str) -> str:
    """A query of the ids of `:counts` jobs of each of `:users`, which it locks."""
    return f"""
        SELECT picked.id
        FROM unnest(CAST(:users AS uuid[]), CAST(:counts AS integer[])) AS given (user_id, most),
        LATERAL (
            SELECT id FROM jobs WHERE {condition} AND {USER} = given.user_id
            ORDER BY {order} LIMIT given.most FOR UPDATE SKIP LOCKED
        ) AS picked
    """  # noqa: S608 - texts of our own


def _walk(name: str, condition: str, part: str) -> str:
    next_user = f"SELECT {USER} FROM jobs WHERE {condition} AND {part}"  # noqa: S608 - as above
    return f"""
        {name} (user_id, n) AS (
            (SELECT user_id, 1 FROM ({next_user} ORDER BY {USER} LIMIT 1) AS one (user_id))
            UNION ALL
            SELECT ({next_user} AND {USER} > {name}.user_id ORDER BY {USER} LIMIT 1), n + 1
            FROM {name} WHERE {name}.user_id IS NOT NULL AND n < :most
        )
    """  # noqa: S608 - as above
