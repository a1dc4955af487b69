//! What a thousand times as many extents do to looking one up.

use std::time::Duration;

use extent::Result;
use nvme_tier::Recovered;

use super::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::tier::content::{Content, EXTENT_BYTES, Sizes};
use crate::tier::image::{Image, Scratch};
use crate::tier::lookups::Lookups;
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "index-lookup", unit: "lookups/s", target: 0.5 },
    needs_node: false,
    has_rival: true,
    about: "extents looked up by one core, of 10 million against of 10 thousand (stretch 0.8)",
    set_up,
};

const MANY: u64 = 10_000_000;
const FEW: u64 = 10_000;

struct Lookup {
    many: Contestant,
    few: Contestant,
    time: Duration,
}

struct Contestant {
    recovered: Recovered,
    lookups: Lookups,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let contestant = |extents| -> Result<Contestant> {
        let content = Content { extents, sizes: Sizes::Mixed, extent_bytes: EXTENT_BYTES };
        let path = setup.directory.join(format!("tier-{extents}"));
        let scratch = Scratch(Image::make(&path, content)?);
        Ok(Contestant { recovered: scratch.0.recover()?, lookups: Lookups::new(content)? })
    };
    let (many, few) = (contestant(MANY)?, contestant(FEW)?);
    Ok(Contest::Duel(Box::new(Lookup { many, few, time: Duration::from_secs(setup.seconds) })))
}

impl Contestant {
    fn run(&mut self, time: Duration) -> Result<f64> {
        self.lookups.batched(&self.recovered.tier, time)
    }
}

impl Duel for Lookup {
    fn ours(&mut self) -> Result<f64> {
        self.many.run(self.time)
    }

    fn rival(&mut self) -> Result<f64> {
        self.few.run(self.time)
    }

    fn rival_name(&self) -> String {
        "the same of 10,000 extents".to_owned()
    }
}
