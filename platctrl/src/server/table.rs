//! Objects as rows of a table, for clients that ask for one in `Accept`. A kind says itself what
//! its columns are.

use http::{HeaderMap, header};
use jiff::Timestamp;
use platctrl_framework::model::{Column, KindDefinition};
use serde_json::{Value, json};

use super::request::Query;
use super::status::{Failure, Result};
use crate::output;

/// How many media types of an `Accept` header are looked at.
const LOOKED_AT: usize = 16;

/// What a row says of its object beside the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Include {
    Nothing,
    Metadata,
    Object,
}

/// The form of an answer with objects.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// The objects themselves.
    Objects,
    /// A `Table`.
    Table(Table),
}

/// How a kind's objects become rows.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    include: Include,
}

/// The parameters of a media type that asks for a table.
fn is_table(media: &str) -> Option<bool> {
    let mut parts = media.split(';').map(str::trim);
    let of = |name: &str| {
        let mut parameters = media.split(';').skip(1).map(str::trim);
        parameters
            .find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    match parts.next()? {
        "application/json" | "*/*" | "application/*" => match of("as") {
            None => Some(false),
            Some("Table") if of("g") == Some("meta.k8s.io") && of("v") == Some("v1") => Some(true),
            Some(_) => None,
        },
        _ => None,
    }
}

impl Form {
    /// The first form that the client takes and this server has; objects, if it takes none.
    pub(super) fn asked(
        headers: &HeaderMap,
        query: &Query,
        definition: &KindDefinition,
    ) -> Result<Self> {
        let accepted = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let table = accepted.take(LOOKED_AT).find_map(is_table).unwrap_or(false);
        if !table {
            return Ok(Self::Objects);
        }
        let include = match query.get("includeObject") {
            None | Some("Metadata") => Include::Metadata,
            Some("None") => Include::Nothing,
            Some("Object") => Include::Object,
            Some(other) => {
                return Err(Failure::bad_request(format!(
                    "includeObject is None, Metadata or Object, not `{}`",
                    super::request::shown(other)
                )));
            }
        };
        Ok(Self::Table(Table {
            columns: definition.columns.clone(),
            include,
        }))
    }
}

impl Table {
    /// The columns, as a `Table` lists them.
    pub(super) fn columns(&self) -> Value {
        let column = |name: &str, description: &str, priority: u8| {
            json!({"name": name, "type": "string", "format": if name == "Name" { "name" } else { "" },
                "description": description, "priority": priority})
        };
        let own = self
            .columns
            .iter()
            .map(|it| column(&it.name, &it.path, u8::from(it.wide)));
        let mut columns = vec![column("Name", "the name within its namespace", 0)];
        columns.extend(own);
        columns.push(column("Age", "how long it has been there", 0));
        columns.into()
    }

    /// An object's row.
    pub(super) fn row(&self, object: &Value, now: Timestamp) -> Value {
        let metadata = &object["metadata"];
        let mut cells = vec![metadata["name"].clone()];
        cells.extend(
            self.columns
                .iter()
                .map(|column| output::cell(output::at(object, &column.path)).into()),
        );
        cells.push(output::age(&metadata["creationTimestamp"], now).into());
        let mut row = json!({"cells": cells});
        match self.include {
            Include::Nothing => {}
            Include::Metadata => {
                row["object"] = json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                });
            }
            Include::Object => row["object"] = object.clone(),
        }
        row
    }

    /// What a list begins with; rows and the list's metadata follow.
    pub(super) fn head(&self) -> String {
        format!(
            "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"columnDefinitions\":{},\"rows\":[",
            self.columns()
        )
    }

    /// One object, or none, as a table of its own. Those of a watch after the first need not say
    /// the columns again.
    pub(super) fn of(
        &self,
        object: Option<&Value>,
        metadata: &Value,
        now: Timestamp,
        first: bool,
    ) -> Value {
        let rows: Vec<_> = object.iter().map(|object| self.row(object, now)).collect();
        let columns = if first { self.columns() } else { json!([]) };
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::Pod;

    use super::*;

    fn form(accept: &str, query: &str) -> Result<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let query = Query::parse(Some(query)).unwrap();
        Form::asked(&headers, &query, &KindDefinition::of::<Pod>())
    }

    #[test]
    fn a_table_is_for_those_who_ask_for_one() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert!(matches!(form(kubectl, ""), Ok(Form::Table(_))));
        for accept in [
            "application/json",
            "*/*",
            "text/html, application/json;as=Other;v=v1;g=meta.k8s.io",
            "application/json, application/json;as=Table;v=v1;g=meta.k8s.io",
            "application/json;as=Table;v=v2;g=meta.k8s.io",
        ] {
            assert!(matches!(form(accept, ""), Ok(Form::Objects)), "{accept}");
        }
        assert!(form(kubectl, "includeObject=All").is_err());
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let Ok(Form::Table(table)) = form("application/json;as=Table;v=v1;g=meta.k8s.io", "")
        else {
            panic!("no table");
        };
        let pod = json!({
            "metadata": {"name": "a-1", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "web1"},
            "status": {"phase": "Running"},
        });
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let row = table.row(&pod, now);
        let cells = row["cells"].as_array().unwrap();
        assert_eq!(cells.len(), table.columns().as_array().unwrap().len());
        assert_eq!(cells[0], "a-1");
        assert_eq!(cells.last().unwrap(), "60s");
        assert!(cells.iter().any(|it| it == "Running"), "{cells:?}");
        assert_eq!(row["object"]["metadata"]["namespace"], "n");
        assert!(row["object"].get("spec").is_none());
    }
}
