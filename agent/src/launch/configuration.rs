//! The configuration files of a version: what CONFIG_PATH and its siblings name.

use serde_json::{Map, Value, json};

use crate::version::Version;

/// The files' contents, as YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// CONFIG_PATH: the manifest's `config`.
    pub(crate) config: String,
    /// PLATFORM_CONFIG_PATH: `{<launchable>: {cgroup: {cpus, memory}}}`.
    pub(crate) platform: String,
    /// RESOURCE_LIMIT_PATH: `{launchables: {<launchable>: {cpu, memory, pids}}}`.
    pub(crate) resource_limits: String,
}

/// The configuration of `version`.
///
/// # Errors
/// When a value cannot be written as YAML.
pub(crate) fn configuration(version: &Version) -> Result<Configuration, String> {
    let yaml = |value: &Value| {
        serde_saphyr::to_string(value).map_err(|error| format!("cannot write YAML: {error}"))
    };
    let config = match &version.spec.config {
        Value::Null => json!({}),
        config => config.clone(),
    };
    let mut platform = Map::new();
    let mut limits = Map::new();
    for (name, launchable) in &version.spec.launchables {
        let resources = &launchable.resources;
        let mut cgroup = Map::new();
        if let Some(cpu) = resources.cpu {
            cgroup.insert("cpus".into(), json!(cpu.millis() as f64 / 1000.0));
        }
        if let Some(memory) = resources.memory {
            cgroup.insert("memory".into(), json!(memory.get()));
        }
        platform.insert(name.clone(), json!({ "cgroup": cgroup }));
        let own = serde_json::to_value(resources).map_err(|error| error.to_string())?;
        limits.insert(name.clone(), own);
    }
    Ok(Configuration {
        config: yaml(&config)?,
        platform: yaml(&Value::Object(platform))?,
        resource_limits: yaml(&json!({ "launchables": limits }))?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::launch::environment::tests::version;

    fn parsed(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn the_files_say_what_the_manifest_says() {
        let files = configuration(&version()).unwrap();
        assert_eq!(parsed(&files.config), json!({"greeting": "hi"}));
        assert_eq!(
            parsed(&files.platform),
            json!({"web": {"cgroup": {"cpus": 0.5, "memory": 268_435_456}}})
        );
        assert_eq!(
            parsed(&files.resource_limits),
            json!({"launchables": {"web": {"cpu": "500m", "memory": "256Mi"}}})
        );
    }

    #[test]
    fn values_that_look_like_other_types_stay_what_they_are() {
        let mut version = version();
        let tricky = json!({"a": "yes", "b": "1.0", "c": "null", "d": "a: b #c", "e": "\u{1}\n", "f": [], "g": {"": ""}});
        Arc::make_mut(&mut version.spec).config = tricky.clone();
        assert_eq!(parsed(&configuration(&version).unwrap().config), tricky);
        Arc::make_mut(&mut version.spec).config = Value::Null;
        assert_eq!(parsed(&configuration(&version).unwrap().config), json!({}));
    }
}
