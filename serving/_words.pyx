# cython: language_level=3
"""Words and their tokens, looked up in C: `plain_text` says for which texts."""

import os

import numpy as np

from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

cdef enum:
    LEAST_SLOTS = 1024
    # Bytes of words, and tokens, of which one of these can say where they are.
    MOST = 0x7FFFFFFF


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t fold(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    /* Folded products of eight bytes each, as wyhash has them.  Keys are secret: who sends texts
       cannot make words that meet in one slot. */
    static inline uint64_t hash_of(const uint8_t *at, size_t length, const uint64_t *keys)
    {
        uint64_t h = keys[0] ^ length, part;
        for (; length > 8; at += 8, length -= 8) {
            memcpy(&part, at, 8);
            h = fold(h ^ part, keys[1]);
        }
        part = 0;
        for (size_t i = 0; i < length; i++)
            part |= (uint64_t)at[i] << 8 * i;
        return fold(fold(h ^ part, keys[1]), keys[2]);
    }

    /* What a text is split from, each byte as the table has it; 0 where one has none. */
    static inline int translate(
        uint8_t *restrict to, const uint8_t *restrict from, size_t length, const uint8_t *table)
    {
        uint8_t least = 255;
        for (size_t i = 0; i < length; i++) {
            uint8_t c = table[from[i]];
            to[i] = c;
            least = c < least ? c : least;
        }
        return least != 0;
    }

    #if PY_VERSION_HEX < 0x030C0000
    #define is_ascii(text) (PyUnicode_READY(text) == 0 && PyUnicode_IS_ASCII(text))
    #else
    #define is_ascii(text) PyUnicode_IS_ASCII(text)
    #endif
    """
    uint64_t hash_of(const uint8_t *, size_t, const uint64_t *) noexcept
    int translate(uint8_t *, const uint8_t *, size_t, const uint8_t *) noexcept
    bint is_ascii(object)
    void *PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)


cdef struct Slot:
    # A word and its tokens; a slot is free where the word has no letters.
    uint64_t hash
    uint32_t word, letters
    # The token itself where there is one.
    uint32_t tokens, count


cdef struct Room:
    # Memory that grows: `used` of `size` elements.
    void *at
    size_t used, size


cdef int reserve(Room *room, size_t more, size_t width) except -1:
    """Make room for `more` elements of `width` bytes behind those that are there."""
    cdef size_t size
    cdef void *at
    if room.size - room.used < more:
        size = max(room.used + more, 2 * room.size)
        at = realloc(room.at, size * width)
        if not at:
            raise MemoryError
        room.at = at
        room.size = size
    return 0


cdef class Words:
    """Which tokens words of printable ASCII have.

    Methods hold Python's lock all the time: threads may share one.

    Args:
        lower: whether capital letters of texts are made small.
        marks: characters that a text must not have.
    """

    cdef uint8_t _table[256]
    cdef uint64_t _keys[3]
    cdef Slot *_slots
    cdef size_t _capacity, _count
    cdef Room _letters, _tokens

    def __cinit__(self, bint lower, str marks):
        cdef int c
        for c in range(0x20, 0x7F):
            if chr(c) not in marks:
                self._table[c] = c + 32 if lower and c"A" <= c <= c"Z" else c
        secret = os.urandom(sizeof(self._keys))
        memcpy(self._keys, <const char *>secret, sizeof(self._keys))
        for c in range(1, 3):
            self._keys[c] |= 1
        self._slots = <Slot *>calloc(LEAST_SLOTS, sizeof(Slot))
        if not self._slots:
            raise MemoryError
        self._capacity = LEAST_SLOTS

    def __dealloc__(self):
        free(self._slots)
        free(self._letters.at)
        free(self._tokens.at)

    def __len__(self):
        return self._count

    cdef Slot *_find(self, const uint8_t *word, size_t letters, uint64_t code) noexcept:
        """The slot of a word, or the free one where it belongs."""
        cdef size_t i = code & (self._capacity - 1)
        cdef Slot *slot
        while True:
            slot = &self._slots[i]
            if not slot.letters or (
                slot.hash == code
                and slot.letters == letters
                and not memcmp(<const uint8_t *>self._letters.at + slot.word, word, letters)
            ):
                return slot
            i = (i + 1) & (self._capacity - 1)

    def look_up(self, list texts not None):
        """The tokens of texts that have nothing but printable ASCII without marks.

        Args:
            texts: strings.

        Returns:
            The tokens of those texts, int64 ``[n]``, one text behind the other; how many each of
            them has, int64; which of all texts they are, bool ``[len(texts)]``; and the words that
            are not known, each as often as it is met, whose tokens are missing.
        """
        cdef Py_ssize_t count = len(texts), k
        plain = np.zeros(count, np.bool_)
        lengths = np.zeros(count, np.int64)
        cdef uint8_t[::1] is_plain = plain.view(np.uint8)
        cdef int64_t[::1] length = lengths
        cdef int64_t[::1] out
        cdef Room small = Room(NULL, 0, 0), found = Room(NULL, 0, 0)
        cdef size_t size, start, end, i, texts_done = 0, before
        cdef const uint8_t *letters
        cdef Slot *slot
        cdef list missing = []
        try:
            for k in range(count):
                text = texts[k]
                if not isinstance(text, str):
                    raise TypeError(f"text {k} is {text!r:.80}")
                if not is_ascii(text):
                    continue
                size = PyUnicode_GET_LENGTH(text)
                reserve(&small, size, 1)
                if not translate(
                    <uint8_t *>small.at, <const uint8_t *>PyUnicode_DATA(text), size, self._table
                ):
                    continue
                is_plain[k] = 1
                letters = <const uint8_t *>small.at
                before = found.used
                end = 0
                while True:
                    start = end
                    while start < size and letters[start] == c" ":
                        start += 1
                    if start == size:
                        break
                    end = start + 1
                    while end < size and letters[end] != c" ":
                        end += 1
                    slot = self._find(
                        letters + start, end - start,
                        hash_of(letters + start, end - start, self._keys),
                    )
                    if not slot.letters:
                        missing.append(
                            PyUnicode_DecodeASCII(
                                <const char *>letters + start, end - start, NULL
                            )
                        )
                        continue
                    reserve(&found, slot.count, sizeof(int64_t))
                    if slot.count == 1:
                        (<int64_t *>found.at)[found.used] = slot.tokens
                    else:
                        for i in range(slot.count):
                            (<int64_t *>found.at)[found.used + i] = (
                                <const uint32_t *>self._tokens.at
                            )[slot.tokens + i]
                    found.used += slot.count
                length[texts_done] = found.used - before
                texts_done += 1
            ids = np.empty(found.used, np.int64)
            if found.used:
                out = ids
                memcpy(&out[0], found.at, found.used * sizeof(int64_t))
        finally:
            free(small.at)
            free(found.at)
        return ids, lengths[:texts_done], plain, missing

    def add(self, words, rows):
        """Remember words; those that are known stay as they are.

        Args:
            words: strings of printable ASCII without spaces.
            rows: the tokens of each, numbers below 2^32.

        Raises:
            ValueError: a word has another character, or none.
            OverflowError: a token is too large.
        """
        for word, row in zip(words, rows, strict=True):
            self._add(word.encode("ascii"), row)

    cdef int _add(self, bytes word, row) except -1:
        cdef const uint8_t *letters = <const uint8_t *><const char *>word
        cdef size_t size = len(word), count = len(row), i
        cdef uint64_t code
        cdef Slot *slot
        if not size or b" " in word:
            raise ValueError(f"{word!r} is no word")
        cdef list tokens = [<uint32_t>token for token in row]
        if 2 * (self._count + 1) > self._capacity:
            self._grow()
        reserve(&self._letters, size, 1)
        reserve(&self._tokens, count, sizeof(uint32_t))
        if self._letters.used + size > MOST or self._tokens.used + count > MOST:
            raise MemoryError
        code = hash_of(letters, size, self._keys)
        slot = self._find(letters, size, code)
        if slot.letters:
            return 0
        memcpy(<uint8_t *>self._letters.at + self._letters.used, letters, size)
        slot[0] = Slot(code, self._letters.used, size, self._tokens.used, count)
        self._letters.used += size
        if count == 1:
            slot.tokens = tokens[0]
        else:
            for i in range(count):
                (<uint32_t *>self._tokens.at)[self._tokens.used + i] = tokens[i]
            self._tokens.used += count
        self._count += 1
        return 0

    cdef int _grow(self) except -1:
        cdef size_t capacity = 2 * self._capacity, old, i
        cdef Slot *slots = <Slot *>calloc(capacity, sizeof(Slot))
        if not slots:
            raise MemoryError
        for old in range(self._capacity):
            if self._slots[old].letters:
                i = self._slots[old].hash & (capacity - 1)
                while slots[i].letters:
                    i = (i + 1) & (capacity - 1)
                slots[i] = self._slots[old]
        free(self._slots)
        self._slots = slots
        self._capacity = capacity
        return 0
