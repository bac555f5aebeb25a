//! Reads the tables of instance types, whose cells are written as Alibaba's documents write them.
//!
//! `1.5/5` and `5/burstable up to 10` are a base and a burst, `10/none` a base alone, `2 × 1,456` two disks, `AMD S7150
//! × 1/4` a quarter of a graphics processor. The tables are part of the program: a row that cannot be read is left out,
//! and a test counts the rows.

use super::{Accelerator, Architecture, Form, InstanceType, Limit, LocalDisks};

/// The types of a table whose first line names the columns.
pub fn types(table: &str) -> Vec<InstanceType> {
    table.lines().skip(1).filter_map(|line| row(&cells(line))).collect()
}

/// The cells of a line; one with a comma stands in quotes.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for character in line.chars() {
        match (character, cells.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => cells.push(String::new()),
            (_, Some(cell)) => cell.push(character),
            (_, None) => {}
        }
    }
    cells
}

fn row(cells: &[String]) -> Option<InstanceType> {
    let [family, name, vcpus, memory, local, accelerator, net, pps, queues, interfaces, iops] =
        cells
    else {
        return None;
    };
    let form = if family.starts_with("ebm") { Form::Board } else { Form::VirtualMachine };
    let is_arm = matches!(family.as_str(), "ebma" | "ebm-lab-arm");
    Some(InstanceType {
        name: name.clone(),
        family: if name.starts_with("ecs.") { format!("ecs.{family}") } else { family.clone() },
        form,
        architecture: if is_arm { Architecture::Arm } else { Architecture::X86 },
        vcpus: vcpus.parse().ok()?,
        memory_mib: scaled(memory, 1024.0)?,
        local_disks: optional(local, local_disks)?,
        accelerator: optional(accelerator, accelerators)?,
        bandwidth_kbit: limit(net, 1_000_000.0)?,
        packets: scaled(pps, 1.0)?,
        queues: optional(queues, |text| text.parse().ok())?,
        interfaces: interfaces.parse().ok()?,
        disk_iops: optional(iops, |text| limit(text, 1.0))?,
    })
}

/// A cell that may be empty; the outer `None` is a cell that cannot be read.
fn optional<T>(cell: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if cell.is_empty() { Some(None) } else { read(cell).map(Some) }
}

fn scaled(text: &str, unit: f64) -> Option<u64> {
    let number: f64 = text.trim().replace(',', "").parse().ok()?;
    (number > 0.0 && number < 1e9).then_some((number * unit).round() as u64)
}

fn limit(text: &str, unit: f64) -> Option<Limit> {
    let (base, burst) = text.split_once('/').unwrap_or((text, "none"));
    let base = scaled(base, unit)?;
    let burst = match burst.trim_start_matches("burstable up to ") {
        "none" => base,
        burst => scaled(burst, unit)?,
    };
    Some(Limit { base, burst })
}

fn local_disks(text: &str) -> Option<LocalDisks> {
    let (count, gib) = text.split_once(" × ").unwrap_or(("1", text));
    Some(LocalDisks { count: count.parse().ok()?, gib: scaled(gib, 1.0)? })
}

/// The count stands before or behind the model.
fn accelerators(text: &str) -> Option<Accelerator> {
    let quarters = |count: &str| match count.split_once('/') {
        Some((parts, of)) => (parts.parse::<u32>().ok()? * 4).checked_div(of.parse().ok()?),
        None => Some(count.parse::<u32>().ok()? * 4),
    };
    let (model, quarters) = match text.split_once(" × ") {
        None => (text, 4),
        Some((before, behind)) => match quarters(behind.trim()) {
            Some(count) => (before, count),
            None => (behind, quarters(before.trim())?),
        },
    };
    Some(Accelerator { model: model.trim().to_owned(), quarters })
}
