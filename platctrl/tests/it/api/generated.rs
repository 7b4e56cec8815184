//! Requests made up from the server's own OpenAPI document: each operation with values that fit,
//! values that nearly do, and values that never could. Whatever comes, the server answers in the
//! form that it promises, is not the one to blame, and serves the next.

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use super::{Api, CONTROLLERS, PODS, controller, pod};

/// Requests of one run. Another run has another seed, which a failure names.
const REQUESTS: usize = 1500;
/// One request of so many is right, and has to be served: how many of those that are made up are
/// right depends on the seed.
const RIGHT: usize = 50;

const TEXTS: [&str; 14] = [
    "",
    "a",
    "hello",
    "default",
    "*",
    "..",
    "%2e%2e%2f",
    "a/b",
    "Ünï\u{202e}",
    "\u{0}\u{1b}[31m",
    "true",
    "-1",
    "99999999999999999999",
    "1.1",
];

struct Maker {
    random: StdRng,
    document: Value,
}

impl Maker {
    fn one<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.random.random_range(0..all.len())]
    }

    fn often(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn text(&mut self) -> String {
        if self.often(2) {
            return "x".repeat(self.random.random_range(60..9000));
        }
        self.one(&TEXTS).to_owned()
    }

    fn number(&mut self) -> Value {
        let all = [
            json!(0),
            json!(1),
            json!(3),
            json!(-1),
            json!(4_294_967_296_u64),
            json!(u64::MAX),
            json!(1.5),
            json!(1e300),
        ];
        all[self.random.random_range(0..all.len())].clone()
    }

    /// A value for a schema; now and then one for none.
    fn value(&mut self, schema: &Value, depth: usize) -> Value {
        if self.often(4) || depth > 8 {
            let odd = [
                json!(null),
                json!([]),
                json!({}),
                json!("x"),
                json!(true),
                self.number(),
            ];
            return odd[self.random.random_range(0..odd.len())].clone();
        }
        if let Some(words) = schema["enum"].as_array() {
            return words[self.random.random_range(0..words.len())].clone();
        }
        match schema["type"].as_str() {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let many = self.random.random_range(0..3);
                (0..many)
                    .map(|_| self.value(&schema["items"], depth + 1))
                    .collect()
            }
            Some("integer" | "number") => self.number(),
            Some("boolean") => self.often(50).into(),
            Some("string") => self.text().into(),
            _ => [json!({"a": 1}), json!("x"), json!([1])][self.random.random_range(0..3)].clone(),
        }
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let mut fields = Map::new();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let wanted = required.iter().any(|it| it == name);
            if self.often(if wanted { 95 } else { 25 }) {
                fields.insert(name.clone(), self.value(schema, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() && self.often(70) {
            let value = self.value(&schema["additionalProperties"], depth + 1);
            fields.insert(self.text(), value);
        }
        if self.often(2) {
            fields.insert(self.text(), self.number());
        }
        fields.into()
    }

    /// A body: of the kind, nearly, or not at all.
    fn body(&mut self, kind: &Value, media: &str) -> String {
        if self.often(4) {
            return self
                .one(&["", "{", "null", "[[[[", "a: &a [*a]", "\u{feff}{}"])
                .to_owned();
        }
        if media.contains("json-patch") {
            let operations = ["add", "remove", "replace", "move", "copy", "test", "x"];
            let paths = [
                "/spec/replicas",
                "/metadata/labels/a",
                "",
                "/spec",
                "/a~2",
                "/metadata/uid",
            ];
            let many = self.random.random_range(0..4);
            let operations: Vec<_> = (0..many)
                .map(|_| json!({"op": self.one(&operations), "path": self.one(&paths), "from": self.one(&paths), "value": self.number()}))
                .collect();
            return json!(operations).to_string();
        }
        let name = kind["kind"].as_str().unwrap_or_default().to_owned();
        let group = kind["group"].as_str().unwrap_or_default().to_owned();
        let version = kind["version"].as_str().unwrap_or_default().to_owned();
        let mut reversed: Vec<_> = group.split('.').collect();
        reversed.reverse();
        let definition = format!("{}.{version}.{name}", reversed.join("."));
        let schema = self.document["definitions"][&definition].clone();
        let mut body = self.object(&schema, 0);
        if self.often(90) {
            body["apiVersion"] = format!("{group}/{version}").into();
            body["kind"] = name.into();
            if !body["metadata"].is_object() {
                body["metadata"] = json!({});
            }
            body["metadata"]["name"] = self.one(&["a", "hello", "web1", "new"]).into();
            body["metadata"]["namespace"] = Value::Null;
        }
        body.to_string()
    }
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// Whether the answer to a request has no end.
fn is_watch(target: &str) -> bool {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let mut pairs = query.split('&');
    let watch = pairs.find_map(|pair| pair.strip_prefix("watch="));
    watch.is_some_and(|value| matches!(value, "" | "1" | "true" | "True"))
}

/// A request, its text for a failure, and whether its answer has no end.
fn request(maker: &mut Maker) -> (Request<Full<bytes::Bytes>>, String, bool) {
    let paths = maker.document["paths"].as_object().unwrap().clone();
    let at = maker.random.random_range(0..paths.len());
    let (path, item) = paths.iter().nth(at).unwrap();
    let methods: Vec<_> = item.as_object().unwrap().iter().collect();
    let (method, operation) = methods[maker.random.random_range(0..methods.len())];
    let names = ["a", "hello", "web1", "default"];
    let mut target = String::new();
    for part in path.split('/').skip(1) {
        target.push('/');
        let filled = match part {
            "{namespace}" if maker.often(90) => "default".to_owned(),
            "{name}" if maker.often(90) => maker.one(&names).to_owned(),
            part if part.starts_with('{') => maker.text(),
            part => part.to_owned(),
        };
        target.push_str(&escaped(&filled));
    }
    let mut separator = '?';
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        if parameter["in"] != "query" || !maker.often(20) {
            continue;
        }
        let value = match maker.value(parameter, 0) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let name = parameter["name"].as_str().unwrap();
        target.push_str(&format!("{separator}{name}={}", escaped(&value)));
        separator = '&';
    }
    let takes = operation["consumes"].as_array().unwrap();
    let media = takes[maker.random.random_range(0..takes.len())]
        .as_str()
        .unwrap();
    let media = match maker.often(5) {
        true => maker
            .text()
            .replace(|c: char| c.is_control() || !c.is_ascii(), ""),
        false => media.to_owned(),
    };
    let has_body = operation["parameters"]
        .as_array()
        .is_some_and(|all| all.iter().any(|it| it["in"] == "body"));
    let body = match has_body {
        true => maker.body(&operation["x-kubernetes-group-version-kind"], &media),
        false => String::new(),
    };
    let method: Method = method.to_ascii_uppercase().parse().unwrap();
    let told = format!("{method} {target} ({media})\n{body}");
    let endless = is_watch(&target);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "platctrl")
        .header("content-type", media)
        .body(Full::new(body.into()))
        .unwrap();
    (request, told, endless)
}

/// A request that nothing is wrong with.
fn right(number: usize) -> (Request<Full<bytes::Bytes>>, String, bool) {
    let body = controller(&format!("right-{number}")).to_string();
    let told = format!("POST {CONTROLLERS}\n{body}");
    let request = Request::post(CONTROLLERS)
        .header("host", "platctrl")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap();
    (request, told, false)
}

#[tokio::test]
async fn whatever_is_made_up_from_the_documents_is_answered_as_promised() {
    let api = Api::start().await;
    let node = json!({"apiVersion": "platctrl.dev/v1", "kind": "Node", "metadata": {"name": "web1"}, "spec": {}});
    api.post("/apis/platctrl.dev/v1/nodes", &node).await.done();
    api.post(CONTROLLERS, &controller("hello")).await.done();
    api.post(PODS, &pod("a", "web1")).await.done();
    let document = api.get("/openapi/v2").await.done();
    let seed: u64 = rand::random();
    let mut maker = Maker {
        random: StdRng::seed_from_u64(seed),
        document,
    };
    let mut codes = std::collections::BTreeMap::<u16, usize>::new();
    for number in 0..REQUESTS {
        let is_right = number % RIGHT == 0;
        let (request, told, endless) = match is_right {
            true => right(number),
            false => request(&mut maker),
        };
        let told = format!("seed {seed}, request {number}: {told}");
        let answer = api.send(request).await;
        let (head, mut body) = answer.into_parts();
        *codes.entry(head.status.as_u16()).or_default() += 1;
        assert!(!head.status.is_server_error(), "{}: {told}", head.status);
        assert!(!is_right || head.status == 201, "{}: {told}", head.status);
        if head.status.is_success() && endless {
            continue;
        }
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.unwrap_or_else(|error| panic!("{error}: {told}"));
            bytes.extend_from_slice(frame.data_ref().unwrap());
        }
        let value: Value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| panic!("{error} in {bytes:?}: {told}"));
        if head.status.is_success() {
            assert!(
                value["kind"].is_string() && value["apiVersion"].is_string(),
                "{value}: {told}"
            );
        } else {
            assert_eq!(value["kind"], "Status", "{told}");
            assert_eq!(value["code"], head.status.as_u16(), "{told}");
            assert!(
                value["message"].as_str().is_some_and(|it| !it.is_empty()),
                "{told}"
            );
            assert!(value["reason"].is_string(), "{told}");
        }
    }
    // It was not refused for one reason alone.
    for code in [200, 400, 404, 422] {
        assert!(codes.contains_key(&code), "seed {seed}: {codes:?}");
    }
    assert_eq!(api.get("/readyz").await.text(), "ok");
}
