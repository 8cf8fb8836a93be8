from retina_ray.data.limited_cache import LimitedCache


def test_what_was_used_last_stays_within_the_limit():
    made: list[str] = []

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key)

    cache = LimitedCache[str, str](6, len)
    for key in ("aa", "bb", "cc", "aa", "dd"):  # "bb" is the one not used for longest
        assert get(key) == key
    assert [cache.peek(key) for key in ("aa", "bb", "cc", "dd")] == ["aa", None, "cc", "dd"]
    assert made == ["aa", "bb", "cc", "dd"]
    assert get("much too long") == "much too long"
    assert cache.peek("much too long") is not None  # the newest stays, alone
    assert cache.peek("dd") is None


def test_the_first_of_two_that_make_a_value_is_kept():
    cache = LimitedCache[int, list](2)
    first = cache.put(1, [])
    assert cache.put(1, [2]) is first
