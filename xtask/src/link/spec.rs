//! What a link does to frames, as text: `rate=100mbit delay=10ms queue=20ms down.loss=1% seed=7`.

use std::str::FromStr;

/// Shown by `--help` and by errors about what is not in it.
pub(crate) const SYNTAX: &str = "\
keys, separated by spaces; each holds for both directions, or for one as up.KEY (from the client) or down.KEY:
  rate=100mbit           bits of Ethernet frames per second, without preamble, FCS and gap: bit, kbit, mbit, gbit
  queue=250kb            drop-tail queue in front of the rate: b, kb, kib, mb, mib, p (frames) or a time at the rate; 1000p if not given
  ecn=30kb               above this many octets in the queue, ECN-capable packets are marked (b, kb, kib, mb, mib)
  delay=10ms             us, ms or s
  jitter=2ms             as much more or less delay, evenly spread; frames keep their order
  loss=1%                of frames, each on its own
  burst=0.1%:25%[:80%]   a burst of losses begins at a frame, ends at a frame, loses a frame while it lasts (100%)
  reorder=1%:3ms         frames that are held back for so much longer, so that later ones overtake them
  duplicate=0.5%         frames of which a copy follows
  seed=7                 of all that is drawn; not per direction";

const MAX_RATE_BPS: u64 = 100_000_000_000;
const MAX_TIME_NS: u64 = 60_000_000_000;
const DEFAULT_QUEUE_FRAMES: usize = 1000;
/// A queue that holds less lets no full frame of an ordinary MTU through.
const FULL_FRAME: u64 = 1514;

/// Both directions of a link.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    /// From the client.
    pub(crate) up: Direction,
    /// From the server.
    pub(crate) down: Direction,
    pub(crate) seed: u64,
}

/// What happens to frames that go one way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Direction {
    /// `None`: frames take no time to send and never queue.
    pub(crate) rate_bps: Option<u64>,
    pub(crate) queue: Queue,
    pub(crate) ecn_octets: Option<u64>,
    pub(crate) delay_ns: u64,
    /// Not above the delay.
    pub(crate) jitter_ns: u64,
    pub(crate) loss: Probability,
    pub(crate) burst: Burst,
    pub(crate) reorder: Probability,
    pub(crate) reorder_ns: u64,
    pub(crate) duplicate: Probability,
}

/// The most that waits for the rate, with the frame that is being sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Queue {
    Frames(usize),
    Octets(u64),
}

/// Gilbert's and Elliott's two states, of which the first loses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Burst {
    pub(crate) begin: Probability,
    pub(crate) end: Probability,
    pub(crate) loss: Probability,
}

/// 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub(crate) struct Probability(pub(crate) f64);

impl Default for Direction {
    /// A wire that does nothing.
    fn default() -> Self {
        Self {
            rate_bps: None,
            queue: Queue::Frames(DEFAULT_QUEUE_FRAMES),
            ecn_octets: None,
            delay_ns: 0,
            jitter_ns: 0,
            loss: Probability::default(),
            burst: Burst::default(),
            reorder: Probability::default(),
            reorder_ns: 0,
            duplicate: Probability::default(),
        }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = |error: String| format!("link `{text}`: {error}");
        Self::parse(text).map_err(fail)
    }
}

impl Spec {
    fn parse(text: &str) -> Result<Self, String> {
        let (mut general, mut up, mut down) = (Vec::new(), Vec::new(), Vec::new());
        let mut seed = None;
        for word in text.split_whitespace() {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("`{word}` is not KEY=VALUE; {SYNTAX}"))?;
            let (settings, key) = match key.split_once('.') {
                None if key == "seed" => {
                    let number = value
                        .parse()
                        .map_err(|_| format!("seed={value} is not a number below 2^64"))?;
                    if seed.replace(number).is_some() {
                        return Err("seed is given twice".to_owned());
                    }
                    continue;
                }
                None => (&mut general, key),
                Some(("up", key)) => (&mut up, key),
                Some(("down", key)) => (&mut down, key),
                Some((direction, _)) => {
                    return Err(format!("direction `{direction}.` is neither up. nor down."));
                }
            };
            if settings.iter().any(|(known, _)| *known == key) {
                return Err(format!("{key} is given twice"));
            }
            settings.push((key, value));
        }
        // What is said of one direction goes before what is said of both, wherever it stands.
        let direction = |own: &[(&str, &str)]| {
            let is_own = |key: &str| own.iter().any(|(known, _)| *known == key);
            let of_both = general.iter().filter(|(key, _)| !is_own(key));
            Direction::new(own.iter().chain(of_both).copied())
        };
        Ok(Self {
            up: direction(&up)?,
            down: direction(&down)?,
            seed: seed.unwrap_or(0),
        })
    }
}

impl Direction {
    fn new<'a>(settings: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut direction = Self::default();
        let mut queue = None;
        for (key, value) in settings {
            let fail = |error: String| format!("{key}={value}: {error}");
            if key == "queue" {
                queue = Some(value);
                continue;
            }
            direction.set(key, value).map_err(fail)?;
        }
        if let Some(value) = queue {
            direction.queue = direction
                .queue(value)
                .map_err(|error| format!("queue={value}: {error}"))?;
        }
        if direction.ecn_octets.is_some() && direction.rate_bps.is_none() {
            return Err("ecn needs a rate: without one nothing queues".to_owned());
        }
        if direction.jitter_ns > direction.delay_ns {
            return Err("jitter must not be above delay".to_owned());
        }
        Ok(direction)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "rate" => self.rate_bps = Some(rate_bps(value)?),
            "ecn" => self.ecn_octets = Some(octets(value)?),
            "delay" => self.delay_ns = time_ns(value)?,
            "jitter" => self.jitter_ns = time_ns(value)?,
            "loss" => self.loss = probability(value)?,
            "burst" => self.burst = burst(value)?,
            "reorder" => {
                let (part, time) = value
                    .split_once(':')
                    .ok_or("write for how long they are held back too, as reorder=1%:3ms")?;
                self.reorder = probability(part)?;
                self.reorder_ns = time_ns(time)?;
            }
            "duplicate" => self.duplicate = probability(value)?,
            _ => return Err(format!("there is no such key; {SYNTAX}")),
        }
        Ok(())
    }

    fn queue(&self, value: &str) -> Result<Queue, String> {
        let rate_bps = self
            .rate_bps
            .ok_or("needs a rate: without one nothing queues")?;
        let (number, unit) = split_unit(value)?;
        let octets = match unit {
            "p" if number.fract() == 0.0 && (1.0..=1e6).contains(&number) => {
                return Ok(Queue::Frames(number as usize));
            }
            "p" => return Err("must be 1 to 1000000 frames".to_owned()),
            "us" | "ms" | "s" => (time_ns(value)? as f64 / 8e9 * rate_bps as f64) as u64,
            _ => octets(value)?,
        };
        if octets < FULL_FRAME {
            return Err(format!(
                "{octets} octets let no full frame through ({FULL_FRAME} octets)"
            ));
        }
        Ok(Queue::Octets(octets))
    }
}

fn rate_bps(value: &str) -> Result<u64, String> {
    let units = [("bit", 1e0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
    let rate = with_unit(value, &units)?;
    if (1..=MAX_RATE_BPS).contains(&rate) {
        Ok(rate)
    } else {
        Err("must be 1bit to 100gbit".to_owned())
    }
}

fn time_ns(value: &str) -> Result<u64, String> {
    let time = with_unit(value, &[("us", 1e3), ("ms", 1e6), ("s", 1e9)])?;
    if time <= MAX_TIME_NS {
        Ok(time)
    } else {
        Err("must be at most 60s".to_owned())
    }
}

fn octets(value: &str) -> Result<u64, String> {
    let units = [
        ("b", 1.0),
        ("kb", 1e3),
        ("kib", 1024.0),
        ("mb", 1e6),
        ("mib", 1_048_576.0),
    ];
    with_unit(value, &units)
}

fn burst(value: &str) -> Result<Burst, String> {
    let parts: Vec<_> = value.split(':').collect();
    let (begin, end, loss) = match parts[..] {
        [begin, end] => (begin, end, "100%"),
        [begin, end, loss] => (begin, end, loss),
        _ => return Err("write it as burst=0.1%:25% or burst=0.1%:25%:80%".to_owned()),
    };
    let burst = Burst {
        begin: probability(begin)?,
        end: probability(end)?,
        loss: probability(loss)?,
    };
    if burst.end.0 == 0.0 {
        return Err("a burst must end: its second part must be above 0%".to_owned());
    }
    Ok(burst)
}

fn probability(value: &str) -> Result<Probability, String> {
    let (number, unit) = split_unit(value)?;
    if unit != "%" || number > 100.0 {
        return Err("must be 0% to 100%".to_owned());
    }
    Ok(Probability(number / 100.0))
}

fn with_unit(value: &str, units: &[(&str, f64)]) -> Result<u64, String> {
    let (number, unit) = split_unit(value)?;
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => Ok((number * factor).round() as u64),
        None => {
            let names: Vec<_> = units.iter().map(|(name, _)| *name).collect();
            Err(format!("its unit must be one of {}", names.join(", ")))
        }
    }
}

fn split_unit(value: &str) -> Result<(f64, &str), String> {
    let end = value
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(value.len());
    let number = value[..end]
        .parse()
        .map_err(|_| "must begin with a number".to_owned())?;
    Ok((number, &value[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_one_direction_goes_before_what_is_said_of_both() {
        let spec: Spec = "down.delay=12.5ms rate=100mbit delay=10ms up.rate=2mbit \
                          queue=20ms jitter=1ms burst=0.1%:25% reorder=1%:3ms down.loss=1% seed=7"
            .parse()
            .unwrap();
        let both = Direction {
            queue: Queue::Octets(250_000),
            jitter_ns: 1_000_000,
            burst: Burst {
                begin: Probability(0.001),
                end: Probability(0.25),
                loss: Probability(1.0),
            },
            reorder: Probability(0.01),
            reorder_ns: 3_000_000,
            ..Direction::default()
        };
        assert_eq!(
            spec.up,
            Direction {
                rate_bps: Some(2_000_000),
                queue: Queue::Octets(5_000),
                delay_ns: 10_000_000,
                ..both.clone()
            }
        );
        assert_eq!(
            spec.down,
            Direction {
                rate_bps: Some(100_000_000),
                delay_ns: 12_500_000,
                loss: Probability(0.01),
                ..both
            }
        );
        assert_eq!(spec.seed, 7);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("rate", "`rate` is not KEY=VALUE"),
            ("speed=1mbit", "speed=1mbit: there is no such key"),
            ("rate=100", "rate=100: its unit must be one of bit, kbit"),
            ("rate=0mbit", "rate=0mbit: must be 1bit to 100gbit"),
            ("rate=fast", "must begin with a number"),
            ("delay=10ms delay=11ms", "delay is given twice"),
            ("seed=1 seed=2", "seed is given twice"),
            ("seed=-1", "seed=-1 is not a number"),
            ("left.delay=1ms", "direction `left.` is neither"),
            ("delay=1ms jitter=1001us", "jitter must not be above delay"),
            ("delay=61s", "must be at most 60s"),
            ("queue=10p", "queue=10p: needs a rate"),
            ("rate=1mbit queue=0p", "must be 1 to 1000000 frames"),
            ("rate=1mbit queue=1513b", "no full frame"),
            ("rate=1mbit queue=12ms", "1500 octets let no full frame"),
            ("ecn=3kb", "ecn needs a rate"),
            ("loss=0.01", "loss=0.01: must be 0% to 100%"),
            ("loss=101%", "must be 0% to 100%"),
            ("burst=1%", "write it as burst="),
            ("burst=1%:0%", "a burst must end"),
            ("reorder=1%", "as reorder=1%:3ms"),
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.starts_with(&format!("link `{text}`: ")), "{error}");
        }
    }
}
