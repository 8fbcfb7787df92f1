//! `close = { ... }` of a service: how subflows end once their connection has.

use super::{ConfigError, Source};
use mpx_datapath::engine::Closing;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawClose {
    passive: Option<bool>,
    hold_client_first_ms: Option<Spanned<u64>>,
    hold_server_first_ms: Option<Spanned<u64>>,
    fin_timeout_ms: Option<Spanned<u64>>,
}

impl Source<'_> {
    pub(super) fn closing(&self, raw: &RawClose) -> Result<Closing, ConfigError> {
        const HOUR_MS: u64 = 3_600_000;
        let millis = |key: &str, value: &Option<Spanned<u64>>, default: Duration, least_ms| {
            let default_ms = default.as_millis() as u64;
            self.millis(key, value.as_ref(), default_ms, least_ms..=HOUR_MS)
        };
        let default = Closing::default();
        Ok(Closing {
            passive: raw.passive.unwrap_or(default.passive),
            hold_peer_first: millis(
                "service.close.hold_client_first_ms",
                &raw.hold_client_first_ms,
                default.hold_peer_first,
                0,
            )?,
            hold_we_first: millis(
                "service.close.hold_server_first_ms",
                &raw.hold_server_first_ms,
                default.hold_we_first,
                0,
            )?,
            fin_timeout: millis(
                "service.close.fin_timeout_ms",
                &raw.fin_timeout_ms,
                default.fin_timeout,
                1_000,
            )?,
        })
    }
}
