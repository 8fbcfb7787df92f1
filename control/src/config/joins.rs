//! `service.joins`: to which ports of our addresses subflows may be joined.

use super::{ConfigError, Source};
use mpx_datapath::engine::JoinPolicy;
use toml::{Spanned, Value};

/// Of one service: each is an entry of the XDP program for every address.
const PORTS_MAX: usize = 256;

impl Source<'_> {
    pub(super) fn joins(&self, raw: Option<&Spanned<Value>>) -> Result<JoinPolicy, ConfigError> {
        const KEY: &str = "service.joins";
        const WRITE: &str = "use \"any-port\", \"service-ports\" or a list of ports";
        let Some(raw) = raw else {
            return Ok(JoinPolicy::AnyPort);
        };
        let refuse = |what: String| Err(self.error(raw, KEY, what));
        match raw.get_ref() {
            Value::String(word) if word == "any-port" => Ok(JoinPolicy::AnyPort),
            Value::String(word) if word == "service-ports" => Ok(JoinPolicy::ServicePorts),
            Value::Array(values) if values.len() > PORTS_MAX => {
                refuse(format!("has more than {PORTS_MAX} ports; use \"any-port\""))
            }
            Value::Array(values) => {
                let mut ports = Vec::with_capacity(values.len());
                for value in values {
                    match value.as_integer().map(u16::try_from) {
                        Some(Ok(port)) if port > 0 => ports.push(port),
                        _ => return refuse(format!("{value} is no port; choose from 1 to 65535")),
                    }
                }
                Ok(JoinPolicy::Ports(ports))
            }
            other => refuse(format!("{other} is unknown; {WRITE}")),
        }
    }
}
