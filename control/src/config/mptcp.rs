//! `mptcp = { ... }` of a service: what it speaks of Multipath TCP.

use super::{ConfigError, Source};
use mpx_datapath::engine::Versions;
use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawMptcp {
    versions: Option<Vec<Spanned<u64>>>,
}

impl Source<'_> {
    /// No versions at all are plain TCP for everybody. Their order says nothing: a client asks for one.
    pub(super) fn versions(&self, raw: Option<&RawMptcp>) -> Result<Versions, ConfigError> {
        const KEY: &str = "service.mptcp.versions";
        let Some(listed) = raw.and_then(|mptcp| mptcp.versions.as_ref()) else {
            return Ok(Versions::default());
        };
        let mut versions = Versions {
            v0: false,
            v1: false,
        };
        for number in listed {
            let version = match number.get_ref() {
                0 => &mut versions.v0,
                1 => &mut versions.v1,
                other => {
                    let what = format!(
                        "there is no version {other} here; choose from 1 (RFC 8684) and 0 (RFC 6824)"
                    );
                    return Err(self.error(number, KEY, what));
                }
            };
            if std::mem::replace(version, true) {
                let what = format!("{} is there twice; remove one", number.get_ref());
                return Err(self.error(number, KEY, what));
            }
        }
        Ok(versions)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use std::path::Path;

    fn versions(setting: &str) -> Result<Versions, String> {
        let text = format!(
            "[[interface]]\nname = \"eth0\"\n[[service]]\nname = \"web\"\n\
             listen = [\"192.0.2.1:80\"]\napp = {{ kind = \"echo\" }}\n{setting}\n"
        );
        match Config::parse(Path::new("mpxd.toml"), &text) {
            Ok(config) => Ok(config.services[0].versions),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn versions_are_those_listed_and_1_by_default() {
        for (setting, v0, v1) in [
            ("", false, true),
            ("mptcp = {}", false, true),
            ("mptcp = { versions = [1] }", false, true),
            ("mptcp = { versions = [1, 0] }", true, true),
            ("mptcp = { versions = [0, 1] }", true, true),
            ("mptcp = { versions = [0] }", true, false),
            ("mptcp = { versions = [] }", false, false),
        ] {
            assert_eq!(versions(setting), Ok(Versions { v0, v1 }), "{setting}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for (setting, error) in [
            (
                "mptcp = { versions = [1, 2] }",
                "mpxd.toml:7: service.mptcp.versions: there is no version 2 here; choose from 1 \
                 (RFC 8684) and 0 (RFC 6824)",
            ),
            (
                "mptcp = { versions = [0, 0] }",
                "mpxd.toml:7: service.mptcp.versions: 0 is there twice; remove one",
            ),
            (
                "mptcp = { version = 0 }",
                "mpxd.toml:7: service[0].mptcp.version: unknown key `version`, expected `versions`; \
                 remove or rename it",
            ),
            (
                "mptcp = { versions = 0 }",
                "mpxd.toml:7: service[0].mptcp.versions: invalid type: integer `0`, expected a \
                 sequence; write versions = [1, 0]",
            ),
        ] {
            assert_eq!(versions(setting), Err(error.into()), "{setting}");
        }
    }
}
