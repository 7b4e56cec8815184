//! Every kept input, and some mutations of each, on every target.

use platctrl_fuzz::{Mutator, TARGETS, directory, find, seeds};

/// Runs the seeds of a target and `mutations` inputs made of them.
fn run(name: &str, mutations: usize) {
    let target = find(name).expect("a target");
    let seeds = seeds(name).expect("seeds");
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let feed = |what: &str, input: &[u8]| {
        let run = std::panic::AssertUnwindSafe(|| (target.run)(input));
        if std::panic::catch_unwind(run).is_err() {
            let shown = String::from_utf8_lossy(input);
            panic!("{name} does not take {what}: {shown:?} {input:?}");
        }
    };
    for (file, seed) in &seeds {
        feed(file, seed);
    }
    let mut mutator = Mutator::new(1, target.longest, target.words);
    for number in 0..mutations {
        feed(&format!("mutation {number}"), &mutator.input(&seeds));
    }
}

macro_rules! targets {
    ($($name:ident: $mutations:literal,)*) => {
        mod hostile_input_to {
            $(#[test] fn $name() { super::run(stringify!($name), $mutations); })*
        }

        #[test]
        fn every_target_has_its_test_its_seeds_and_its_harness() {
            let tested = [$(stringify!($name)),*];
            for target in TARGETS {
                assert!(tested.contains(&target.name), "{} is not tested", target.name);
                assert!(directory(target.name).is_dir(), "{} has no seeds", target.name);
                let harness = concat!(env!("CARGO_MANIFEST_DIR"), "/libfuzzer/fuzz_targets");
                let harness = format!("{harness}/{}.rs", target.name);
                assert!(std::path::Path::new(&harness).is_file(), "there is no {harness}");
            }
            assert_eq!(tested.len(), TARGETS.len());
        }
    };
}

targets! {
    selector: 3000,
    labels: 3000,
    key: 3000,
    revision: 1000,
    digest: 1000,
    quantity: 3000,
    location: 1000,
    record: 2000,
    object: 1000,
    manifest: 1000,
    artifact: 200,
    archive: 400,
    shim_protocol: 3000,
    shim_spec: 2000,
    pod_record: 300,
    http: 300,
    store_file: 60,
}
