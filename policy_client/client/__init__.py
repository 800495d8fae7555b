"""The client SDK. Names that users need are exported by `rewardsvc.policy_client`.

Everything that decides is free of input and output and knows no clock but the `now` it is given:

    encode, chunks          Python values to request messages of bounded size
    jobs                    which RPC to start next, what to do when one ends
    retry, addresses        when to try again, and where
    decode                  reply messages to numpy arrays, checked
    stream                  the same for a bidirectional stream

`sync` and `aio` (with `sync_stream` and `aio_stream`) only start RPCs and wait for them.
"""
