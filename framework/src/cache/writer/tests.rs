use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use bytes::Bytes;

use super::*;
use crate::cache::View;
use crate::cache::index::By;
use crate::model::{KindDefinition, Scope};
use crate::store::Key;

fn kinds() -> Arc<Kinds> {
    let definition = |plural: &str, scope: Scope| {
        let json = json!({
            "group": "example.dev", "version": "v1", "kind": plural, "plural": plural,
            "singular": plural, "scope": scope, "schema": {},
        });
        serde_json::from_value::<KindDefinition>(json).unwrap()
    };
    let mut kinds = Kinds::new();
    kinds.define(definition("sites", Scope::Namespaced));
    kinds.define(definition("pods", Scope::Node));
    Arc::new(kinds)
}

fn options() -> Options {
    let sites = KindOptions {
        labels: vec!["owner".into()],
        indexes: vec![(
            "parity",
            Arc::new(|entry: &Entry| vec![format!("{}", entry.revision().counter() % 2)]),
        )],
        ..KindOptions::default()
    };
    [(GroupPlural::new("example.dev", "sites"), sites)].into()
}

const OWNERS: [&str; 3] = ["u1", "u2", "u3"];

fn value(key: &str, owner: Option<usize>) -> String {
    let name = if key.starts_with("o/part/") {
        key.rsplit('/').nth(1).unwrap()
    } else {
        key.rsplit('/').next().unwrap()
    };
    let owners: Vec<_> = owner
        .iter()
        .map(|&owner| json!({"apiVersion": "example.dev/v1", "kind": "sites", "name": "x", "uid": OWNERS[owner]}))
        .collect();
    let labels: BTreeMap<_, _> = owner
        .iter()
        .map(|&owner| ("owner", OWNERS[owner]))
        .collect();
    json!({"metadata": {"name": name, "namespace": "d", "uid": "u", "ownerReferences": owners, "labels": labels}})
        .to_string()
}

const KEYS: [&str; 9] = [
    "o/intent/example.dev/sites/d/a",
    "o/reality/example.dev/sites/d/a",
    "o/part/example.dev/sites/d/a/dns",
    "o/ledger/example.dev/sites/d/a",
    "o/intent/example.dev/pods/n1/d/p",
    "o/reality/example.dev/pods/n1/d/p",
    "o/intent/example.dev/pods/n10/d/p",
    "o/intent/example.dev/pods/n10/d/broken",
    "o/intent/example.dev/unknown/d/p",
];

#[derive(Clone, Debug)]
enum Step {
    /// What the store does; None deletes.
    Write(usize, Option<Option<usize>>),
    /// The watch tells everything that is new, from some earlier point on.
    Watch(u64),
    List,
    /// A list in pages of so many records, perhaps begun anew on the way.
    Pages(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let owner = prop::option::of(0..OWNERS.len());
    prop_oneof![
        6 => (0..KEYS.len(), prop::option::of(owner)).prop_map(|(key, put)| Step::Write(key, put)),
        2 => (0..4u64).prop_map(Step::Watch),
        1 => Just(Step::List),
        1 => (1..5usize, any::<bool>()).prop_map(|(size, anew)| Step::Pages(size, anew)),
    ]
}

#[derive(Default)]
struct Model {
    records: BTreeMap<&'static str, Record>,
    history: Vec<Change>,
    told: u64,
}

impl Model {
    fn write(&mut self, key: &'static str, put: Option<Option<usize>>) {
        let revision = Revision::new(0, self.history.len() as u64 + 1);
        let store_key = Key::new(key).unwrap();
        let change = match put {
            Some(owner) => {
                let text = if key.ends_with("broken") && owner.is_none() {
                    "{".to_owned()
                } else {
                    value(key, owner)
                };
                let record = Record {
                    key: store_key,
                    value: text.into(),
                    created: revision,
                    modified: revision,
                    lease: None,
                };
                self.records.insert(key, record.clone());
                Change::Put(record)
            }
            None => {
                self.records.remove(key);
                Change::Delete {
                    key: store_key,
                    revision,
                }
            }
        };
        self.history.push(change);
    }
}

fn check(model: &Model, reader: &Reader) {
    let view = reader.view();
    let mut seen = BTreeMap::new();
    for entry in view.state.objects.iter() {
        for stored in &*entry.records {
            let key = record_key(entry.key.path(), &stored.slot);
            seen.insert(
                key,
                (Bytes::from_owner(stored.value.clone()), stored.modified),
            );
        }
    }
    let known = |key: &&str| !key.contains("/unknown/");
    let expected: BTreeMap<_, _> = model
        .records
        .iter()
        .filter(|(key, _)| known(key))
        .map(|(key, record)| ((*key).to_owned(), (record.value.clone(), record.modified)))
        .collect();
    assert_eq!(seen, expected);
    // Two indexes besides the owners.
    let mut found = 0;
    for entry in view.state.objects.iter() {
        let sites = GroupPlural::new("example.dev", "sites");
        for owner in entry.owners() {
            let keys = view
                .state
                .found
                .by(&By::Owner(owner.uid.as_str()), "example.dev/");
            assert!(keys.contains(&&entry.key), "{} by {}", entry.key, owner.uid);
            found += 1;
        }
        if let Some(labels) = &entry.labels
            && *entry.key.kind() == sites
        {
            let keys = view
                .state
                .found
                .by(&By::Label("owner", &labels["owner"]), "example.dev/sites/");
            assert!(keys.contains(&&entry.key), "{}", entry.key);
            found += 1;
        }
        if *entry.key.kind() == sites {
            let parity = format!("{}", entry.revision().counter() % 2);
            let keys = view
                .state
                .found
                .by(&By::Index("parity", &parity), "example.dev/sites/");
            assert!(keys.contains(&&entry.key), "{}", entry.key);
            found += 1;
        }
    }
    assert_eq!(view.state.found.len(), found, "no index is left behind");
    for plural in ["sites", "pods"] {
        let kind = GroupPlural::new("example.dev", plural);
        assert_eq!(
            view.count_of("example.dev", plural),
            view.keys_of(&kind).len()
        );
    }
    let broken = model.records.values().any(|record| record.value == "{");
    assert_eq!(!view.set_aside().is_empty(), broken);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn lists_and_watches_lead_to_what_the_store_holds_and_every_change_follows_the_last(steps in prop::collection::vec(step(), 0..60)) {
        let (mut writer, reader) = cache(kinds(), vec![Prefix::new("o/").unwrap()], options());
        let mut model = Model::default();
        let mut objects = BTreeMap::<Arc<str>, Arc<Entry>>::new();
        for step in steps.into_iter().chain([Step::Watch(0)]) {
            let newest = Revision::new(0, model.history.len() as u64);
            let changes = match step {
                Step::Write(key, put) => {
                    model.write(KEYS[key], put);
                    continue;
                }
                Step::Watch(again) => {
                    let from = model.told.saturating_sub(again) as usize;
                    let mut last = BTreeMap::new();
                    for change in &model.history[from..] {
                        last.insert(change.key().clone(), change.clone());
                    }
                    writer.apply(0, last.into_values().collect(), newest)
                }
                Step::List => writer.replace(0, model.records.values().cloned().collect(), newest),
                Step::Pages(size, anew) => {
                    let all: Vec<Record> = model.records.values().cloned().collect();
                    let pages: Vec<_> = all.chunks(size).enumerate().collect();
                    let broken_off = pages.iter().take(if anew { pages.len() / 2 } else { 0 });
                    for (place, page) in broken_off.chain(&pages) {
                        let page = FirstPage::of(page.to_vec(), *place == 0);
                        prop_assert!(writer.take(Feed::Page(0, page)).is_none());
                    }
                    writer.replace(0, Vec::new(), newest)
                }
            };
            model.told = newest.counter();
            for change in changes {
                let entry = change.after.as_ref().or(change.before.as_ref()).unwrap();
                let before = objects.get(entry.key.path()).map(Arc::as_ptr);
                prop_assert_eq!(before, change.before.as_ref().map(Arc::as_ptr), "a change follows the last one");
                match &change.after {
                    Some(after) => objects.insert(after.key.shared_path().clone(), after.clone()),
                    None => objects.remove(entry.key.path()),
                };
            }
            check(&model, &reader);
            prop_assert_eq!(reader.view().revision(), newest);
        }
    }
}

#[test]
fn a_held_view_does_not_change_and_a_node_is_not_its_longer_namesake() {
    let (mut writer, reader) = cache(kinds(), vec![Prefix::new("o/").unwrap()], options());
    let mut model = Model::default();
    for key in &KEYS[..7] {
        model.write(key, Some(None));
    }
    let records: Vec<_> = model.records.values().cloned().collect();
    writer.replace(0, records, Revision::new(0, 7));
    let held = reader.view();
    writer.replace(0, Vec::new(), Revision::new(0, 8));
    let pods = |view: &View| view.state.objects.below("example.dev/pods/").count();
    assert_eq!((pods(&held), pods(&reader.view())), (2, 0));
    let on_node = held.state.objects.below("example.dev/pods/n1/");
    assert_eq!(on_node.count(), 1);
}
