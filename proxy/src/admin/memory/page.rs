//! The page for people.

use std::time::Duration;

use telemetry::heapwatch::flamegraph::{bytes, escape};
use telemetry::heapwatch::legible::{self, Step};
use telemetry::heapwatch::report::{Container, Stack};
use telemetry::heapwatch::{Mode, Report, State, Subsystem};

use super::{Explained, Line, Told, chart};
use crate::cli::table::{counted, span};

/// While names are looked up the page comes again by itself.
const REFRESH: &str = "<meta http-equiv=\"refresh\" content=\"3\">\n";

/// Steps of a stack that are written.
const STEPS_MAX: usize = 60;

const OWN: [&str; 5] = ["proxy", "control", "telemetry", "ebpf_filter", "ferrule"];

pub(super) fn render(told: &Told<'_>) -> String {
    let Told { node, page, wish, raw_query } = told;
    let heap = &page.heap;
    let totals = if wish.day { &heap.totals.quarters } else { &heap.totals.seconds };
    let query = if raw_query.is_empty() { String::new() } else { format!("?{raw_query}") };
    let count = match heap.stacks.len() {
        0 => "nothing".to_owned(),
        n => format!("{n} stacks, the largest first"),
    };
    let stacks: String = heap.stacks.iter().map(|found| stack(heap, found)).collect();
    let field = |key: &str| {
        let fields = super::query_of(wish);
        fields
            .into_iter()
            .find(|(name, _)| *name == key)
            .map_or_else(String::new, |(_, v)| escape(&v))
    };
    // Whatever a value holds, no later placeholder may be found in it: the template is cut at its
    // placeholders first.
    fill(include_str!("page.html"), |name| match name {
        "refresh" if heap.names_pending > 0 => REFRESH.to_owned(),
        "refresh" => String::new(),
        "node" => escape(node),
        "about" => about(told),
        "tiles" => tiles(told),
        "totals" => chart::totals(totals) + &span_links(wish.day, raw_query),
        "title" => capital(&escape(&wish.title())),
        "count" => count.clone(),
        "function" => field("function"),
        "older" => field("older"),
        "younger" => field("younger"),
        "old_after" => super::span(Duration::from_millis(heap.old_after_ms)),
        "query" => escape(&query),
        "subsystems_offered" => offered(wish.query.subsystem),
        "stacks" if stacks.is_empty() => empty(heap.mode).to_owned(),
        "stacks" => stacks.clone(),
        // What is unbounded comes before everything else.
        "suspects" => containers(heap, "Unbounded containers", |state| state >= State::Growing),
        "containers" => containers(heap, "Large blocks that grow", |state| state < State::Growing),
        "samples" => heap.tables.samples.to_string(),
        "subsystems" => subsystems(told),
        "apps" => apps(told),
        "owners" => owners(told),
        "explained" => explained(told),
        "ledger" => page.ledger.iter().map(ledger_row).collect(),
        _ => String::new(),
    })
}

/// Replaces `{name}` where a name is all lower-case letters; the style's braces stay.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let name = from[1..].split('}').next().unwrap_or_default();
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            text.push_str(&value(name));
            rest = &from[name.len() + 2..];
        } else {
            text.push('{');
            rest = &from[1..];
        }
    }
    text + rest
}

/// A time in its two largest units.
pub(super) fn lasted(seconds: f64) -> String {
    span(seconds)
}

fn about(told: &Told<'_>) -> String {
    let heap = &told.page.heap;
    let how = match heap.mode {
        Mode::Hooks => format!("one sample in {}", bytes(heap.interval_bytes)),
        Mode::Dumps => "by profile dumps: ages are estimates".to_owned(),
        Mode::Off => return " · the heap is not watched".to_owned(),
    };
    let up = lasted(heap.uptime_ms as f64 / 1000.0);
    let build = heap.build_id.get(..12).unwrap_or(&heap.build_id);
    let test = if heap.profile.name() == "test" { ", in the scales of a test" } else { "" };
    let pending = match heap.names_pending {
        0 => String::new(),
        n => format!(" · {n} names are being looked up"),
    };
    format!(" · watched for {up}, {how}{test} · build {}{pending}", escape(build))
}

fn tiles(told: &Told<'_>) -> String {
    let memory = &told.page.memory;
    let heap = &told.page.heap;
    let suspects = &heap.suspects;
    let alarm = suspects.leak + suspects.probable;
    let tile = |name: &str, value: String, class: &str| {
        format!("<div{class}><span>{name}</span><b>{value}</b></div>")
    };
    let fragmented = match memory.allocated {
        0 => "–".to_owned(),
        allocated => {
            let share = memory.active.saturating_sub(allocated) as f64 * 100.0 / allocated as f64;
            format!("{share:.1} %")
        }
    };
    let verdict = match (alarm, suspects.growing) {
        (0, 0) => "none".to_owned(),
        (0, growing) => format!("{growing} growing"),
        (alarm, _) => alarm.to_string(),
    };
    [
        tile("resident", bytes(memory.resident), ""),
        tile("allocated", bytes(memory.allocated), ""),
        tile("retained", bytes(memory.retained), ""),
        tile("fragmentation", fragmented, " title=\"active pages beyond what is allocated\""),
        tile("suspects", verdict, if alarm > 0 { " class=\"alarm\"" } else { "" }),
    ]
    .concat()
}

fn span_links(day: bool, raw_query: &str) -> String {
    let rest =
        if raw_query.is_empty() { String::new() } else { format!("&amp;{}", escape(raw_query)) };
    let link = |name: &str, span: &str, here: bool| {
        if here {
            name.to_owned()
        } else {
            format!("<a href=\"/memory?span={span}{rest}\">{name}</a>")
        }
    };
    format!(
        "<p class=\"quiet\">{} · {}</p>",
        link("ten minutes", "now", !day),
        link("a day", "day", day)
    )
}

fn empty(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => {
            "<p class=\"quiet\">The heap is not watched: <code>[memory] heapwatch = false</code>, or the allocator offers nothing.</p>"
        }
        Mode::Hooks | Mode::Dumps => "<p class=\"quiet\">No block of that kind is alive.</p>",
    }
}

fn stack(heap: &Report, stack: &Stack) -> String {
    let steps = legible::steps(&stack.frames);
    let mut facts = vec![
        counted(stack.samples, "sample"),
        format!("{}{}", stack.subsystem.name(), of_app(heap, stack.app)),
    ];
    facts.extend(stack.owner.as_ref().map(|owner| format!("owner {}", escape(owner))));
    facts.extend(stack.bytes_per_request.map(|bytes| format!("<b>{bytes:.1} B per request</b>")));
    if stack.state >= State::Growing {
        facts.push(format!("{} per hour", bytes(stack.bytes_per_hour.max(0.0) as u64)));
        facts.push(format!("so for {}", lasted(stack.state_for_ms as f64 / 1000.0)));
    }
    facts.extend(
        stack.limit_in_ms.map(|ms| format!("at the limit in {}", lasted(ms as f64 / 1000.0))),
    );
    let below = if stack.live_bytes > stack.bytes {
        format!("of {} alive", bytes(stack.live_bytes))
    } else {
        String::new()
    };
    entry(stack.state, &steps, &facts, &chart::sparkline(&stack.graph), stack.bytes, &below)
}

fn containers(heap: &Report, title: &str, wanted: impl Fn(State) -> bool) -> String {
    let rows: String = heap
        .containers
        .iter()
        .filter(|found| wanted(found.state))
        .map(|found| container(heap, found))
        .collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>{title}<small>one allocation each, through all its reallocations</small></h2>{rows}"
    )
}

fn container(heap: &Report, container: &Container) -> String {
    let steps = legible::steps(&container.frames);
    let mut facts = vec![
        format!(
            "doubled {} times in {}",
            container.doublings,
            lasted(container.age_ms as f64 / 1000.0)
        ),
        format!("{}{}", container.subsystem.name(), of_app(heap, container.app)),
    ];
    facts.extend(container.owner.as_ref().map(|owner| format!("owner {}", escape(owner))));
    facts.extend(container.exponent.map(|b| format!("grows as requests<sup>{b:.2}</sup>")));
    facts.extend(container.bytes_per_request.map(|bytes| format!("{bytes:.1} B per request")));
    entry(container.state, &steps, &facts, &chart::sparkline(&container.graph), container.bytes, "")
}

fn of_app(heap: &Report, app: u32) -> String {
    if app == 0 { String::new() } else { format!(", app {}", escape(&heap.app(app))) }
}

fn entry(
    state: State,
    steps: &[Step],
    facts: &[String],
    graph: &str,
    size: u64,
    below: &str,
) -> String {
    let headline = escape(legible::headline(steps));
    let rows: String = steps.iter().take(STEPS_MAX).map(step).collect();
    format!(
        "<details class=\"{0}\"><summary><span><span class=\"name\">{headline}</span><br><span class=\"facts\"><span class=\"badge\">{0}</span>{1}</span></span>{graph}<span class=\"size\">{2}<small>{below}</small></span></summary><ol class=\"mono\">{rows}</ol></details>\n",
        state.name(),
        facts.join(" · "),
        bytes(size),
    )
}

fn step(step: &Step) -> String {
    let own = if OWN.contains(&legible::home(&step.name)) { " class=\"own\"" } else { "" };
    let place = match step.place.as_str() {
        "" => String::new(),
        place => format!("<span class=\"place\">{}</span>", escape(place)),
    };
    format!("<li{own}>{}{place}</li>", escape(&step.name))
}

fn offered(chosen: Option<Subsystem>) -> String {
    let option = |value: &str, name: &str, here: bool| {
        let selected = if here { " selected" } else { "" };
        format!("<option value=\"{value}\"{selected}>{name}</option>")
    };
    let all = option("", "any", chosen.is_none());
    let named = Subsystem::ALL.map(|s| option(s.name(), s.name(), chosen == Some(s)));
    all + &named.concat()
}

fn subsystems(told: &Told<'_>) -> String {
    let heap = &told.page.heap;
    let row = |name: &str, part: u64| {
        format!(
            "<tr><td><a href=\"/memory?subsystem={name}\">{name}</a><td>{}<td class=\"n\">{}</tr>",
            chart::bar(part, heap.tables.bytes),
            bytes(part)
        )
    };
    heap.subsystems.iter().map(|share| row(share.subsystem.name(), share.bytes)).collect()
}

fn apps(told: &Told<'_>) -> String {
    let heap = &told.page.heap;
    let row = |name: &str, part: u64| {
        format!(
            "<tr><td>{}<td>{}<td class=\"n\">{}</tr>",
            escape(name),
            chart::bar(part, heap.tables.bytes),
            bytes(part)
        )
    };
    let rows: String =
        heap.apps.iter().map(|share| row(&heap.app(share.app), share.bytes)).collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>By app<small>what its connections hold, by the same samples</small></h2><table>{rows}</table>"
    )
}

fn owners(told: &Told<'_>) -> String {
    let owners = &told.page.heap.owners;
    if owners.is_empty() {
        return String::new();
    }
    let rows: String = owners
        .iter()
        .map(|owner| {
            format!(
                "<tr><td>{}<td>{}<td class=\"n\">{} of {}</tr>",
                escape(&owner.name),
                chart::bar(owner.bytes, owner.cap),
                bytes(owner.bytes),
                bytes(owner.cap)
            )
        })
        .collect();
    format!(
        "<h2>Declared owners<small>by samples, against what they said they would hold</small></h2><table>{rows}</table>"
    )
}

fn explained(told: &Told<'_>) -> String {
    let Explained { bytes: booked, percent } = told.page.explained();
    format!("{} booked: explained {percent:.0} % of what is allocated", bytes(booked))
}

fn ledger_row(line: &Line) -> String {
    let Line { owner, unit, current, high, cap, drops, bytes: _, place: _ } = line;
    let amount = |n: u64| if unit == "bytes" { bytes(n) } else { n.to_string() };
    let positive = |n: &i64| u64::try_from(*n).unwrap_or_default();
    let limit = if *cap == u64::MAX { "–".to_owned() } else { amount(*cap) };
    format!(
        "<tr><td>{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{limit}<td>{}<td class=\"n\">{drops}</tr>\n",
        escape(owner),
        amount(positive(current)),
        amount(positive(high)),
        chart::bar(positive(current), *cap),
    )
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
