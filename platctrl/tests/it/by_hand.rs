//! What platctrl writes is read with the stores' own programs, and what a person writes with them
//! is looked at before it counts: what makes sense is taken, the rest is set aside and stops
//! nothing else.

use serde_json::Value;

use crate::policy::Place;
use crate::rig::eventually;

const OBJECTS: &str = "o/intent/platctrl.dev/replicationcontrollers/default";

/// Reads and writes a key below the root with the store's own program.
struct Hand<'a> {
    place: &'a Place,
    root: String,
}

impl Hand<'_> {
    fn read(&self, key: &str) -> String {
        let key = format!("{}/{key}", self.root);
        match self.place.consul {
            true => self
                .place
                .server
                .consul_shell(&format!("consul kv get {key}")),
            false => {
                let get = ["get", "--print-value-only", &key];
                self.place.server.etcdctl(&get).unwrap()
            }
        }
    }

    fn write(&self, key: &str, value: &str) {
        let key = format!("{}/{key}", self.root);
        match self.place.consul {
            true => {
                let put = format!("consul kv put '{key}' - <<'VALUE'\n{value}\nVALUE");
                self.place.server.consul_shell(&put);
            }
            false => {
                self.place.server.etcdctl(&["put", &key, value]).unwrap();
            }
        }
    }
}

fn by_hand(place: &Place) {
    let rig = &place.rig;
    let admin = ("root".to_owned(), place.server.hush());
    place.store(&["init", &place.url]).ok();
    let server = place.start("server", &admin, &[]);
    eventually("an answer of the server", || {
        (rig.cli(&["get", "rc"]).code == Some(0)).then_some(())
    });
    rig.quickstart_artifact().manifest(0, |text| text);
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();

    let hand = Hand {
        place,
        root: rig.app.clone(),
    };
    let own = format!("{OBJECTS}/hello");
    let mut intent: Value = serde_json::from_str(&hand.read(&own)).unwrap();
    assert_eq!(intent["metadata"]["name"], "hello", "{intent}");
    assert_eq!(intent["spec"]["replicas"], 0, "{intent}");
    let anchor: Value = serde_json::from_str(&hand.read("x/anchor")).unwrap();
    assert!(anchor["storeId"].is_string(), "{anchor}");

    // A person changes a label, and writes what is no object in several ways.
    intent["metadata"]["labels"]["by"] = "hand".into();
    hand.write(&own, &intent.to_string());
    hand.write(&format!("{OBJECTS}/garbage"), "this is no JSON");
    hand.write(&format!("{OBJECTS}/elsewhere"), &intent.to_string());
    let mut wrong = intent.clone();
    wrong["metadata"]["name"] = "wrong".into();
    wrong["spec"]["replicas"] = "many".into();
    hand.write(&format!("{OBJECTS}/wrong"), &wrong.to_string());
    hand.write(&format!("{OBJECTS}/Not A Name"), "{}");
    hand.write("o/intent/nothing", "{}");

    // On Consul a foreign write is found by a look now and then.
    eventually("the label that was written by hand", || {
        let said = rig.cli(&["get", "rc", "-l", "by=hand", "-o", "name"]);
        said.out
            .contains("replicationcontroller/hello")
            .then_some(())
    });
    let listed = rig.cli(&["get", "rc", "-o", "json"]);
    let whole: Value = serde_json::from_str(&listed.out).unwrap();
    let names: Vec<&str> = whole["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"hello"), "{whole:#}");
    for bad in ["garbage", "elsewhere", "Not A Name"] {
        assert!(!names.contains(&bad), "{bad}: {whole:#}");
    }
    let said = rig.cli(&["get", "rc/garbage"]);
    assert_ne!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("garbage"), "{said:?}");
    // Everything else goes on.
    rig.cli(&["label", "rc/hello", "after=all"]).ok();
    let said = rig
        .cli(&["get", "rc", "-l", "after=all,by=hand", "-o", "name"])
        .ok();
    assert_eq!(said, "replicationcontroller/hello\n");
    let copied: Value = serde_json::from_str(&hand.read(&own)).unwrap();
    assert_eq!(copied["metadata"]["labels"]["after"], "all");
    rig.cli(&["delete", "rc/hello"]).ok();
    // A server's directory holds no pods: there is nothing to uninstall.
    drop(server);
    std::fs::remove_dir_all(rig.data_dir()).unwrap();
}

#[test]
fn what_is_written_by_hand_into_etcd_is_checked_and_set_aside() {
    by_hand(&Place::etcd("etcd-3.5"));
}

#[test]
fn what_is_written_by_hand_into_consul_is_checked_and_set_aside() {
    by_hand(&Place::consul());
}
