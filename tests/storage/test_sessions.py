"""Sessions of the dashboard that were ended: single ones by name, and all of an actor by its era."""

from tollkeeper.storage.database import Database


async def test_one_session_is_ended_and_no_other(database: Database) -> None:
    """However often; and it is forgotten when it would have ended anyway."""
    now = [100]
    ends = database.session_ends(lambda: now[0])
    for _ in range(2):
        await ends.end("ses_a", 200)
    assert await ends.has_ended("ses_a", "adm_1", 0)
    assert not await ends.has_ended("ses_b", "adm_1", 0)
    now[0] = 199
    await ends.end("ses_b", 300)
    assert await ends.has_ended("ses_a", "adm_1", 0)
    now[0] = 200
    await ends.end("ses_c", 300)
    assert not await ends.has_ended("ses_a", "adm_1", 0)
    assert await ends.has_ended("ses_b", "adm_1", 0)


async def test_all_sessions_of_an_actor_are_ended_and_new_ones_stand(database: Database) -> None:
    ends = database.session_ends(lambda: 100)
    assert await ends.era("adm_1") == 0
    for era in range(3):
        assert not await ends.has_ended("ses_a", "adm_1", era)
        await ends.end_all("adm_1")
        assert await ends.has_ended("ses_a", "adm_1", era)
        assert await ends.era("adm_1") == era + 1
    assert not await ends.has_ended("ses_a", "adm_2", 0)
