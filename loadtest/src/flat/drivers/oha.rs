//! Windows of oha, each a process of its own whose connections end with it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::flat::measure::{Load, Window};
use crate::oha::{Oha, Until};

pub(crate) struct OhaLoad {
    oha: Oha,
    wrong: BTreeMap<String, u64>,
}

impl OhaLoad {
    pub(crate) fn new(oha: Oha) -> Self {
        Self { oha, wrong: BTreeMap::new() }
    }
}

impl Load for OhaLoad {
    fn window(&mut self, count: u64) -> Result<Window> {
        let began = Instant::now();
        let got = self.oha.run(Until::Count(count))?;
        ensure!(got.succeeded > 0, "oha got nothing: {:?}", got.failed);
        for (what, count) in got.failed {
            *self.wrong.entry(what).or_default() += count;
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Window { done: got.succeeded, seconds, latency: got.latency })
    }

    fn rest(&mut self) {}

    fn wrong(&self) -> Vec<(String, u64)> {
        self.wrong.clone().into_iter().collect()
    }
}
