"""Clip, rounding, noise and ring meet here, and only here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from privacy.errors import CohortTooSmall, ConfigError, EncodingError
from privacy.fixedpoint import clipped, decode_mean, encode, from_ring, preshrunk_clip, to_ring
from privacy.noise import KeyStream, discrete_gaussian
from privacy.query import Query
from privacy.wire import Answer


def slotted_update(update: NDArray[np.float64], query: Query, slot: int) -> NDArray[np.float64]:
    """Return the vector [dim] of a device that answers in `slot`: its update there, zeros elsewhere, a one-hot weight.

    The update is clipped so that it and its weight w = c / 4 fit the clip together (|u| <= sqrt(15)/4 c = 0.968 c): the
    sum of weights over w then counts devices, whatever their updates' norms. `make_answer` clips the whole once more.
    Raises EncodingError.
    """
    if update.shape != (query.slot_dim,) or not 0 <= slot < query.slots:
        raise EncodingError(f"an update [{query.slot_dim}] for one of {query.slots} slots was expected")
    vector = np.zeros(query.dim)
    room = preshrunk_clip(query.clip_norm, query.integer_clip, query.dim)
    if query.weighted:
        weight = float(query.weight)
        vector[query.slots * query.slot_dim + slot] = weight
        room = math.sqrt(room * room - weight * weight) * (1 - 2**-40)  # stay below after the squares round
    vector[slot * query.slot_dim : (slot + 1) * query.slot_dim] = clipped(update, room)
    return vector


def make_answer(update: NDArray[np.float64], query: Query, device_id: str, noise_key: bytes) -> Answer:
    """Return the unsigned answer to `query` for `update`, float64 [query.dim].

        y = clip(update) in integers, sum y_j^2 <= S^2   +   N_Z(0, sigma^2) [dim]   (mod 2^32)

    Pure: the caller has checked the policy and written the charge to its ledger before, and answers an event once. The
    noise is fixed by `noise_key`, the event and the integers (`answer_stream`): the same update gives the same bytes, a
    different one fresh noise and so a second rho, which nobody charges here. Hence store the answer, and send the same
    bytes if asked again. Transport `off` adds no noise. Raises EncodingError for an update that cannot be encoded; it
    is then not answered at all.
    """
    if np.shape(update) != (query.dim,):
        raise EncodingError(f"the query asks for {query.dim} numbers, the update has shape {np.shape(update)}")
    integers = encode(update, query.clip_norm, query.integer_clip)
    if query.transport != "off":
        stream = answer_stream(noise_key, query.event_id(device_id), integers)
        integers += discrete_gaussian(query.sigma, query.dim, stream)
    return Answer(query.sha256, device_id, to_ring(integers))


def answer_stream(noise_key: bytes, event_id: bytes, integers: NDArray[np.int64]) -> KeyStream:
    """Return the random words of the noise that covers x = `integers`, int64 [dim], clipped and rounded, in one event.

        KeyStream(noise_key, H("confide/answer-noise/1" | 0x00 | event | H(x as little-endian int64))),  H = SHA-256

    Noise made from what it covers, as RFC 6979 makes nonces and SIV (Rogaway, Shrimpton 2006) makes initial vectors:
    repeated work gives the same bytes, and no state that is lost or rolled back makes one noise cover two updates.

    Why this is the mechanism x + N_Z(0, sigma^2) all the same. rho bounds, for each fixed pair of inputs, how far the
    two distributions of the output lie apart. For each fixed x the words are a pseudorandom function (HKDF-SHA256, then
    AES-256-CTR) of the secret key at one point: to everybody without the key they look uniform and independent of x and
    of all that is public, also where the server knows or chooses x. Different x or events are different points, as
    SHA-256 has no known collision, so their noises look independent of each other, and rho adds up as usual. That x
    rests on the same key through its training batches changes nothing: these are drawn at a point of their own.

    Fails for who knows the key: a guess of x can be checked exactly. An event answered for two different x costs 2 rho,
    and that the bytes differ or do not tells whether x did: a bit that no noise covers.
    """
    digest = hashlib.sha256(integers.astype("<i8").tobytes()).digest()
    return KeyStream(noise_key, hashlib.sha256(b"confide/answer-noise/1\x00" + event_id + digest).digest())


def sum_answers(query: Query, answers: Iterable[Answer]) -> tuple[NDArray[np.int64], int]:
    """Return the integer sum [dim] of all answers and their number: transport `ideal` or `off`, in the clear.

    Raises CohortTooSmall below the query's floor, ConfigError for an answer to another query, a device that answers
    twice, or more answers than invited. Checks no signatures: the caller knows whose key is whose.
    """
    total = np.zeros(query.dim, dtype=np.uint32)
    devices: set[str] = set()
    for answer in answers:
        if answer.query_sha256 != query.sha256 or answer.vector.size != query.dim:
            raise ConfigError("an answer to another query")
        if answer.device_id in devices:
            raise ConfigError("a device answered twice")
        devices.add(answer.device_id)
        total += answer.vector
    if len(devices) > query.cohort.invited:
        raise ConfigError("more answers than devices invited")
    if len(devices) < query.cohort.min_survivors:
        raise CohortTooSmall(f"{len(devices)} answers, the query needs {query.cohort.min_survivors}")
    return from_ring(total), len(devices)


def noisy_mean(query: Query, answers: Iterable[Answer]) -> NDArray[np.float64]:
    """Return the mean of all answers, float64 [dim]; its noise has deviation `noise_of_mean`; see `sum_answers`."""
    total, survivors = sum_answers(query, answers)
    return decode_mean(total, query.clip_norm, query.integer_clip, survivors)


def noise_of_mean(query: Query, survivors: int) -> float:
    """Return the deviation of the noise on each coordinate of the mean: z c / sqrt(honest survivors), 0 with `off`."""
    if query.transport == "off":
        return 0.0
    return query.sigma / (query.scale * math.sqrt(survivors))
