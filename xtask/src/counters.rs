//! The kernel's own counters in a namespace.

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
        let counters = json["kernel"]
            .as_object()
            .ok_or("nstat printed no object `kernel`")?;
        Ok(Self(
            counters
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)))
                .collect(),
        ))
    }

    /// A counter that this kernel does not have is an error: it must not pass for zero.
    pub(crate) fn get(&self, name: &str) -> Result<u64, String> {
        self.0
            .get(name)
            .copied()
            .ok_or_else(|| format!("this kernel has no counter {name}"))
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
