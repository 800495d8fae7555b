"""Requests whose text is not UTF-8: one bad sample must not cost its batch.

A proto3 `string` that is not UTF-8 makes the whole message unparsable, and gRPC answers INTERNAL
for a call of a thousand samples because of one. Strings and bytes are the same on the wire, so when
the strict parse fails we parse once more with a twin of the schema in which every string is bytes,
note which samples are bad, blank them, and parse the rest strictly. The good path pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from rewardsvc.v1 import reward_pb2 as pb

M = TypeVar("M", bound=Message)

SCORE = "/rewardsvc.v1.RewardService/Score"
SCORE_STREAM = "/rewardsvc.v1.RewardService/ScoreStream"


@dataclass(frozen=True, slots=True)
class Request(Generic[M]):
    """A parsed request.

    Attributes:
        message: The request; samples named in `bad` are blank in it but for their id.
        bad: Index of a sample → what is wrong with its text.
    """

    message: M
    bad: dict[int, str] = field(default_factory=dict)


def request_parser(kind: type[M]) -> Callable[[bytes], Request[M]]:
    """A gRPC request deserializer for `kind`, a message with a repeated field `samples`."""

    def parse(data: bytes) -> Request[M]:
        try:
            return Request(kind.FromString(data))
        except DecodeError:
            return _parse_leniently(kind, data)

    return parse


def _parse_leniently(kind: type[M], data: bytes) -> Request[M]:
    twin = _twin_of(kind.DESCRIPTOR.full_name)()
    twin.ParseFromString(data)  # raises DecodeError if the bytes are no message at all
    bad: dict[int, str] = {}
    for index, sample in enumerate(twin.samples):
        complaint = _bad_text(sample)
        if complaint:
            bad[index] = complaint
            name = sample.id
            sample.Clear()
            if _is_utf8(name):
                sample.id = name
    return Request(kind.FromString(twin.SerializeToString()), bad)


def _bad_text(message: Any, path: str = "") -> str:
    """Names the first field that is a string in the real schema and not UTF-8; "" if all are."""
    real = _strings_of(message.DESCRIPTOR.full_name)
    for descriptor, value in message.ListFields():
        name = f"{path}{descriptor.name}"
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if hasattr(value, "__len__") else [value]:
                complaint = _bad_text(part, f"{name}.")
                if complaint:
                    return complaint
        elif descriptor.name in real:
            try:
                value.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    f"{name}: not UTF-8 at byte {error.start} ({value[error.start]:#04x}); "
                    "encode the text as UTF-8, replacing what cannot be"
                )
    return ""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@cache
def _strings_of(full_name: str) -> frozenset[str]:
    """Names of the string fields of a message in the real schema."""
    descriptor = pb.DESCRIPTOR.pool.FindMessageTypeByName(full_name)
    return frozenset(f.name for f in descriptor.fields if f.type == FieldDescriptor.TYPE_STRING)


@cache
def _twin_of(full_name: str) -> Callable[[], Any]:
    """The class of `full_name` in the twin schema."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        for field_ in message.field:
            if field_.type == descriptor_pb2.FieldDescriptorProto.TYPE_STRING:
                field_.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))


class LenientParsing(grpc.aio.ServerInterceptor):
    """Gives the calls that carry samples the parser above in place of the generated one.

    Their servicer methods are handed a `Request`.
    """

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Replaces the request deserializer of Score and ScoreStream."""
        handler = await continuation(details)
        if handler is None:
            return None
        if details.method == SCORE:
            return grpc.unary_unary_rpc_method_handler(
                handler.unary_unary, request_parser(pb.ScoreRequest), handler.response_serializer
            )
        if details.method == SCORE_STREAM:
            return grpc.stream_stream_rpc_method_handler(
                handler.stream_stream,
                request_parser(pb.ScoreStreamRequest),
                handler.response_serializer,
            )
        return handler
