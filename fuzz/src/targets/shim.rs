//! What a shim and its agent say to each other, and what they leave on the disk.

use platctrl_shim_lib::{ExitRecord, Reply, Request, Spec, State};

use super::Target;

pub(super) const PROTOCOL: Target = Target {
    name: "shim_protocol",
    run: protocol,
    longest: 2048,
    words: &[
        "status",
        "subscribe ",
        "stop ",
        "signal ",
        "respec",
        "err ",
        "platctrl-shim-state 1 seq=1 phase=running",
        "platctrl-shim-exit 1 seq=1 status=code code=1",
        " message=\\x00",
        "\\x",
        "18446744073709551615",
        " child=1 child-ticks=2",
        " started-boot-ms=18446744073709551615",
        " status=not-started",
    ],
};

pub(super) const SPEC: Target = Target {
    name: "shim_spec",
    run: spec,
    longest: 4096,
    words: &[
        "platctrl-shim-spec 1\n",
        "arg ",
        "env A=",
        "restart Always\n",
        "rlimit nofile:1:2\n",
        "uid 0\n",
        "gid 0\n",
        "\\x0a",
        "log-name ",
        "!newer 1\n",
        "backoff-max-ms 18446744073709551615\n",
    ],
};

/// The sum that records carry, which a blind change breaks.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn line(written: &str) -> &[u8] {
    assert_eq!(written.matches('\n').count(), 1, "{written:?}");
    written
        .strip_suffix('\n')
        .expect("a line ends as lines do")
        .as_bytes()
}

fn protocol(input: &[u8]) {
    if let Ok(request) = Request::decode(input) {
        assert_eq!(Request::decode(line(&request.encode())), Ok(request));
    }
    let mut summed = input.to_vec();
    summed.extend_from_slice(format!(" sum={:016x}", sum(input)).as_bytes());
    for input in [input, &summed] {
        let Some(reply) = Reply::decode(input) else {
            continue;
        };
        // Long messages are shortened once, and then stay.
        let written = reply.encode();
        let again = Reply::decode(line(&written)).expect("it was written by us");
        assert_eq!(again.encode(), written);
    }
    if let Some(state) = State::decode(&summed) {
        let _ = (state.next_start_in(), state.phase.at_rest());
    }
    if let Some(exit) = ExitRecord::decode(&summed) {
        let _ = (exit.uptime(), exit.status.success());
    }
}

fn spec(input: &[u8]) {
    let mut summed = input.to_vec();
    summed.extend_from_slice(format!("end {:016x}\n", sum(input)).as_bytes());
    for input in [input, &summed] {
        match Spec::decode(input) {
            Ok(spec) => {
                let written = spec.encode().expect("what was read is valid");
                let again = Spec::decode(written.as_bytes()).expect("it was written by us");
                assert_eq!(again, spec);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
