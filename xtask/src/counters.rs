//! Counters under the names of `nstat`: the kernel's own in a namespace, and mpxd's.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::topology::Namespace;

/// A reading of `nstat`: totals since the namespace was made.
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    pub(crate) fn read(namespace: &Namespace) -> Result<Self, String> {
        let text = namespace
            .cmd("nstat")
            .args(["-a", "-s", "-z", "-j"])
            .run()?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|error| format!("nstat printed no JSON: {error}"))?;
        Self::from_json(&json, "kernel")
    }

    /// The table that somebody's `nstat -j` has under his name.
    pub(crate) fn from_json(json: &Value, owner: &str) -> Result<Self, String> {
        let counters = json[owner]
            .as_object()
            .ok_or_else(|| format!("nstat printed no object `{owner}`"))?;
        Ok(Self(
            counters
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)))
                .collect(),
        ))
    }

    /// A counter that does not exist is an error: it must not pass for zero.
    pub(crate) fn get(&self, name: &str) -> Result<u64, String> {
        self.0
            .get(name)
            .copied()
            .ok_or_else(|| format!("there is no counter {name}"))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Everything about MPTCP that is not zero, for an error message.
    pub(crate) fn mptcp(&self) -> String {
        let shown: Vec<_> = self
            .0
            .iter()
            .filter(|(name, value)| name.starts_with("MPTcp") && **value > 0)
            .map(|(name, value)| format!("{}={value}", name.trim_start_matches("MPTcpExt")))
            .collect();
        shown.join(" ")
    }
}
