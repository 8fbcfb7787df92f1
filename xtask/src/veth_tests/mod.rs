//! The server against the Linux kernel's MPTCP and other people's programs, over veth pairs.
//!
//! Every case gets a topology, a backend and a server of its own. When its body is done, every
//! case ends with the same questions: has the server forgotten its connections, do the UMEM
//! accounts balance, did the client's kernel see no fallback and no bad checksum, does SIGTERM end
//! the server with status 0 and without an XDP program left?

mod active_open;
mod addresses;
mod bad_input;
mod close;
mod diagnostics;
mod ecn;
mod emulated;
mod fallback;
mod fast_open;
mod faults;
mod floods;
mod lab;
mod links;
mod neighborhood;
mod path_mtu;
mod shutdown;
mod survival;
mod tools;
mod transfers;
mod workers;

use std::time::{Duration, Instant};

use clap::Args;

use crate::backend::Site;
use crate::process::set_deadline;
use crate::scratch::Scratch;
use crate::server::{Config, Kind};
use crate::topology::Shape;
use crate::ui;

use lab::Lab;

/// Sizes of the files to fetch, in MiB.
const SITE_MIB: &[u64] = &[8, 64, 256];

type Body = Box<dyn Fn(&mut Lab) -> Result<(), String>>;

pub(crate) struct Case {
    name: String,
    limit: Duration,
    shape: Shape,
    /// What the link emulators do on every path, if there are any.
    link: Option<&'static str>,
    /// Makes no sense, or cannot be asked, of the kernel's own server.
    mpxd_only: bool,
    /// The body starts what server it needs.
    no_server: bool,
    /// The client's kernel is to fall back to TCP.
    falls_back: bool,
    configure: fn(&mut Config),
    body: Body,
}

impl Case {
    fn new(
        name: impl Into<String>,
        body: impl Fn(&mut Lab) -> Result<(), String> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            limit: Duration::from_secs(60),
            shape: Shape::default(),
            link: None,
            mpxd_only: false,
            no_server: false,
            falls_back: false,
            configure: |_| {},
            body: Box::new(body),
        }
    }

    fn paths(mut self, paths: u8) -> Self {
        self.shape.paths = paths;
        self
    }

    fn queues(mut self, queues: u8) -> Self {
        self.shape.queues = queues;
        self
    }

    fn over(mut self, link: &'static str) -> Self {
        self.link = Some(link);
        self
    }

    fn limit_s(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    fn mpxd_only(mut self) -> Self {
        self.mpxd_only = true;
        self
    }

    fn falls_back(mut self) -> Self {
        self.falls_back = true;
        self
    }

    fn no_server(mut self) -> Self {
        self.no_server = true;
        self.mpxd_only()
    }

    fn configured(mut self, configure: fn(&mut Config)) -> Self {
        self.configure = configure;
        self
    }

    fn is_meant(&self, filters: &[String]) -> bool {
        filters.is_empty() || filters.iter().any(|part| self.name.contains(part))
    }

    fn run(&self, kind: Kind, site: &Site) -> Result<(), String> {
        set_deadline(Some(Instant::now() + self.limit));
        let result = Lab::start(self, kind, site).and_then(|mut lab| {
            let body = (self.body)(&mut lab);
            let result = body.and_then(|()| lab.finish());
            result.map_err(|error| lab.explain(error))
        });
        set_deadline(None);
        result
    }
}

/// All cases, in the order in which they run.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = transfers::cases();
    cases.extend(faults::cases());
    cases.extend(floods::cases());
    cases.extend(fast_open::cases());
    cases.extend(links::cases());
    cases.extend(ecn::cases());
    cases.extend(emulated::cases());
    cases.extend(fallback::cases());
    cases.extend(path_mtu::cases());
    cases.extend(addresses::cases());
    cases.extend(active_open::cases());
    cases.extend(survival::cases());
    cases.extend(workers::cases());
    cases.extend(neighborhood::cases());
    cases.extend(shutdown::cases());
    cases.extend(tools::cases());
    cases.extend(diagnostics::cases());
    cases.extend(close::cases());
    cases.extend(bad_input::cases());
    cases
}

/// Runs the cases whose names contain one of the filters, all without any.
pub(crate) fn run(kind: Kind, filters: &[String]) -> Result<(), String> {
    let cases: Vec<_> = cases()
        .into_iter()
        .filter(|case| case.is_meant(filters))
        .filter(|case| kind == Kind::Mpxd || !case.mpxd_only)
        .collect();
    if cases.is_empty() {
        return Err(format!(
            "no veth test has {filters:?} in its name; `cargo xtask test --list` shows the names"
        ));
    }
    run_all(kind, &cases)
}

/// `cargo xtask steering-crowd`: the cases of workers with so many connections, and what was counted.
pub(crate) fn steering_crowd(options: &CrowdOptions) -> Result<(), String> {
    let mut cases = workers::crowds(options.connections, Some(|row| println!("{row}")));
    cases.retain(|case| case.is_meant(&options.mode));
    if cases.is_empty() {
        return Err(format!("no mode has {:?} in its name", options.mode));
    }
    println!("{}", workers::REPORT_HEAD);
    run_all(Kind::Mpxd, &cases)
}

#[derive(Debug, Args)]
pub(crate) struct CrowdOptions {
    /// Connections of each mode, of which 20 are open at once
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// Only modes with this in their name (may be repeated)
    #[arg(long, value_name = "NAME")]
    mode: Vec<String>,
}

fn run_all(kind: Kind, cases: &[Case]) -> Result<(), String> {
    let scratch = Scratch::make()?;
    let site = Site::make(scratch.path(), SITE_MIB)?;
    let failed: Vec<_> = cases
        .iter()
        .filter(|case| {
            let title = format!("veth {}", case.name);
            let result = ui::step(&title, |_| case.run(kind, &site));
            result
                .inspect_err(|error| eprintln!("         {error}"))
                .is_err()
        })
        .map(|case| case.name.as_str())
        .collect();
    if failed.is_empty() {
        ui::say(&format!("{} veth tests passed", cases.len()));
        Ok(())
    } else {
        Err(format!(
            "{} of {} veth tests failed: {}; run one again with: cargo xtask test --only-veth --veth NAME",
            failed.len(),
            cases.len(),
            failed.join(", ")
        ))
    }
}

pub(crate) fn names() -> Vec<String> {
    cases().into_iter().map(|case| case.name).collect()
}
