//! Who owns what: the entries of `metadata.managedFields`.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::set::Set;

/// Most entries of updates that an object keeps; the oldest are merged beyond it.
// Source: apimachinery, `DefaultMaxUpdateManagers`.
const UPDATES_MAX: usize = 10;

/// The manager under which the oldest updates are merged.
const ANCIENT: &str = "ancient-changes";

const FIELDS_V1: &str = "FieldsV1";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// Who owns fields. One who applies is the same in every version, one who updates
/// another in each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    /// Empty for the object itself.
    pub(super) subresource: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) manager: Manager,
    /// RFC 3339 in whole seconds; empty when it is not known.
    pub(super) time: String,
    pub(super) fields: Set,
}

/// The entries of one object, at most one for each manager.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Managers {
    pub(super) entries: Vec<Entry>,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

impl Manager {
    /// What tells managers apart.
    fn identity(&self) -> (&str, Operation, &str, &str) {
        let api_version = if self.operation == Operation::Apply { "" } else { self.api_version.as_str() };
        (self.name.as_str(), self.operation, self.subresource.as_str(), api_version)
    }
}

/// As upstream's conflicts name a manager.
impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.api_version),
        }
    }
}

impl Entry {
    fn decode(value: &Value, index: usize) -> Result<Self, String> {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let operation = match value["operation"].as_str() {
            Some("Apply") => Operation::Apply,
            Some("Update") => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType").as_str() {
            FIELDS_V1 => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
            other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {index}")),
        }
        let fields = match &value["fieldsV1"] {
            Value::Null => Set::default(),
            fields => Set::from_fields(fields)?,
        };
        let manager = Manager {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
        };
        Ok(Self { manager, time: text("time"), fields })
    }

    fn encode(&self) -> Value {
        let mut value = json!({
            "operation": self.manager.operation.as_str(),
            "apiVersion": self.manager.api_version,
            "fieldsType": FIELDS_V1,
            "fieldsV1": self.fields.to_fields(),
        });
        let optional =
            [("manager", &self.manager.name), ("time", &self.time), ("subresource", &self.manager.subresource)];
        for (name, text) in optional {
            if !text.is_empty() {
                value[name] = text.as_str().into();
            }
        }
        value
    }
}

impl Managers {
    /// Reads managedFields. Two entries of one manager are its last one.
    ///
    /// # Errors
    /// In upstream's words, when an entry is malformed.
    pub(super) fn decode(value: &Value) -> Result<Self, String> {
        let values = value.as_array().into_iter().flatten().enumerate();
        let mut entries: Vec<Entry> =
            values.map(|(index, value)| Entry::decode(value, index)).collect::<Result<_, String>>()?;
        // Stable, so that the last one of a manager comes first.
        entries.reverse();
        entries.sort_by(|a, b| a.manager.identity().cmp(&b.manager.identity()));
        entries.dedup_by(|a, b| a.manager.identity() == b.manager.identity());
        Ok(Self { entries })
    }

    /// Writes managedFields in upstream's order; `None` when nobody owns anything.
    pub(super) fn encode(mut self) -> Option<Value> {
        self.entries.retain(|entry| !entry.fields.is_empty());
        self.entries.sort_by_cached_key(|entry| (entry.manager.operation, entry.time.clone(), entry.manager.clone()));
        let entries: Vec<Value> = self.entries.iter().map(Entry::encode).collect();
        (!entries.is_empty()).then_some(Value::Array(entries))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a manager's entry out.
    pub(super) fn take(&mut self, manager: &Manager) -> Option<Entry> {
        let index = self.entries.iter().position(|entry| entry.manager.identity() == manager.identity())?;
        Some(self.entries.remove(index))
    }

    /// Adds fields to what a manager owns, if there are any.
    pub(super) fn give(&mut self, manager: Manager, fields: Set, time: &str) {
        if fields.is_empty() {
            return;
        }
        let mut entry =
            self.take(&manager).unwrap_or_else(|| Entry { manager, time: String::new(), fields: Set::default() });
        entry.fields.add(&fields);
        time.clone_into(&mut entry.time);
        self.entries.push(entry);
    }

    /// What somebody owns.
    pub(super) fn all(&self) -> Set {
        let mut all = Set::default();
        for entry in &self.entries {
            all.add(&entry.fields);
        }
        all
    }

    /// Merges the oldest updates of each version until there are few enough.
    pub(super) fn cap(&mut self) {
        let (applied, mut updates): (Vec<Entry>, Vec<Entry>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| entry.manager.operation == Operation::Apply);
        self.entries = applied;
        let mut surplus = updates.len().saturating_sub(UPDATES_MAX);
        updates.sort_by_cached_key(|entry| (entry.manager.name != ANCIENT, entry.time.clone(), entry.manager.clone()));
        // Where the oldest entry of each version is.
        let mut oldest: BTreeMap<String, usize> = BTreeMap::new();
        for entry in updates {
            match oldest.get(&entry.manager.api_version) {
                Some(&index) if surplus > 0 => {
                    let bucket = &mut self.entries[index];
                    ANCIENT.clone_into(&mut bucket.manager.name);
                    bucket.manager.subresource.clear();
                    bucket.fields.add(&entry.fields);
                    bucket.time = entry.time;
                    surplus -= 1;
                }
                _ => {
                    oldest.entry(entry.manager.api_version.clone()).or_insert(self.entries.len());
                    self.entries.push(entry);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, api_version: &str, minute: usize) -> Value {
        json!({"manager": name, "operation": "Update", "apiVersion": api_version, "fieldsType": "FieldsV1",
               "time": format!("2024-01-01T00:{minute:02}:00Z"), "fieldsV1": {format!("f:{name}"): {}}})
    }

    #[test]
    fn entries_come_back_in_upstreams_order() {
        let applied = json!({"manager": "z", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "time": "2024-01-01T00:09:00Z", "fieldsV1": {"f:a": {}}, "subresource": "status"});
        let empty =
            json!({"manager": "e", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {}});
        let managers = Managers::decode(&json!([update("b", "v1", 2), empty, update("c", "v1", 1), applied])).unwrap();
        assert_eq!(managers.encode(), Some(json!([applied, update("c", "v1", 1), update("b", "v1", 2)])));
        assert_eq!(Managers::default().encode(), None);
    }

    #[test]
    fn two_entries_of_one_manager_are_its_last_one() {
        let (first, last) = (update("a", "v1", 1), update("a", "v1", 2));
        let managers = Managers::decode(&json!([first, last])).unwrap();
        assert_eq!(managers.encode(), Some(json!([last])));
    }

    #[test]
    fn malformed_entries_are_refused() {
        let check = |field: &str, value: Value, expected: &str| {
            let mut entry = update("a", "v1", 0);
            entry[field] = value;
            assert_eq!(Managers::decode(&json!([entry])).unwrap_err(), expected);
        };
        check("operation", json!("Create"), "operation must be `Apply` or `Update`");
        check("apiVersion", json!(""), "apiVersion must not be empty");
        check("fieldsType", json!(""), "missing fieldsType in managed fields entry 0");
        check("fieldsType", json!("FieldsV2"), "invalid fieldsType \"FieldsV2\" in managed fields entry 0");
        check("fieldsV1", json!({"x": {}}), "\"x\" is no path element");
    }

    #[test]
    fn the_oldest_updates_are_merged() {
        let list: Vec<Value> = (0..12).map(|index| update(&format!("m{index:02}"), "v1", index)).collect();
        let mut managers = Managers::decode(&Value::Array(list)).unwrap();
        managers.cap();
        let entries = managers.encode().unwrap();
        assert_eq!(entries.as_array().unwrap().len(), UPDATES_MAX);
        assert_eq!(
            entries[0],
            json!({"manager": "ancient-changes", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                   "time": "2024-01-01T00:02:00Z", "fieldsV1": {"f:m00": {}, "f:m01": {}, "f:m02": {}}})
        );
        assert_eq!(entries[1], update("m03", "v1", 3));

        let mut again = Managers::decode(&entries).unwrap();
        again.entries.push(Entry::decode(&update("m12", "v1", 12), 0).unwrap());
        again.cap();
        assert_eq!(again.encode().unwrap()[0]["fieldsV1"], json!({"f:m00": {}, "f:m01": {}, "f:m02": {}, "f:m03": {}}));
    }

    #[test]
    fn updates_of_different_versions_are_kept_apart() {
        let mut list: Vec<Value> = (1..11).map(|index| update(&format!("m{index:02}"), "v2", index)).collect();
        list.push(update("m00", "v1", 0));
        let mut managers = Managers::decode(&Value::Array(list)).unwrap();
        managers.cap();
        let entries = managers.encode().unwrap();
        assert_eq!(entries[0], update("m00", "v1", 0));
        assert_eq!(entries[1]["manager"], "ancient-changes");
        assert_eq!(entries[1]["fieldsV1"], json!({"f:m01": {}, "f:m02": {}}));
    }

    #[test]
    fn conflicts_name_managers_as_upstream_does() {
        let manager = |operation, subresource: &str| Manager {
            name: "m".to_owned(),
            operation,
            api_version: "apps/v1".to_owned(),
            subresource: subresource.to_owned(),
        };
        assert_eq!(manager(Operation::Update, "").to_string(), "\"m\" using apps/v1");
        assert_eq!(manager(Operation::Update, "scale").to_string(), "\"m\" with subresource \"scale\" using apps/v1");
        assert_eq!(manager(Operation::Apply, "").to_string(), "\"m\"");
    }
}
