//! The manual: a page for each command, and conserver.yml(5).

use std::error::Error;

use clap::Command;
use clap_mangen::Man;
use conserver::settings::TABLE;
use roff::{Roff, bold, roman};

use super::File;
use super::markdown::{inlines, render, render_code, render_row};
use super::readme::{section, table};

const MANUAL: &str = "conserver";
const VERSION: &str = concat!("conserver ", env!("CARGO_PKG_VERSION"));
const DEFAULT_CONFIG: &str = include_str!("../etc/config.yml");

const FILES: &[(&str, &str)] = &[
    (
        "/etc/conserver/config.yml",
        "The configuration, conserver.yml(5).",
    ),
    (
        "/etc/conserver/conserver.env",
        "The settings of the service, one `NAME=VALUE` on each line.",
    ),
    (
        "/var/lib/conserver",
        "What the service keeps; the vCons of the configuration that comes with the package are in `vcons` there.",
    ),
    (
        "/run/conserver",
        "The scoreboard of the service, which `conserver status` reads.",
    ),
];

const SERVICE: &str = "\
The package brings the service `conserver`. It runs as the user `conserver`, with the settings of \
`/etc/conserver/conserver.env`.

```
systemctl status conserver      what it does
systemctl reload conserver      after a change of config.yml; fails, and says so, where that is wrong
systemctl restart conserver     after a change of conserver.env
journalctl -u conserver         its log
/usr/libexec/conserver/check-service
                                whether the service could start, as the service sees it
```

Commands do not read that file. To give one the settings of the service and its rights:

```
systemd-run -qPG --uid=conserver -p EnvironmentFile=-/etc/conserver/conserver.env conserver dlq ls
```

What the service may not do (write elsewhere than in `/var/lib/conserver`, see `/home`, run code made at run time, ...) \
stands in its unit, with the lines that allow it: `systemctl cat conserver`.";

/// Every page.
pub fn pages() -> Result<Vec<File>, Box<dyn Error>> {
    let mut program = conserver::cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = vec![
        ("man/conserver.1".to_owned(), of_program(&program)?),
        ("man/conserver.yml.5".to_owned(), of_configuration()?),
    ];
    for command in visible(&program) {
        of_command(command, &mut pages)?;
    }
    Ok(pages)
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|it| !it.is_hide_set())
}

fn man(command: &Command) -> Man {
    Man::new(command.clone()).source(VERSION).manual(MANUAL)
}

/// conserver(1): what clap knows, and what the environment and the outside are told.
fn of_program(program: &Command) -> Result<Vec<u8>, Box<dyn Error>> {
    let man = man(program);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    let mut more = Roff::new();
    heading("ENVIRONMENT", &mut more);
    for setting in TABLE {
        let default = setting.default.trim_matches(['(', ')']);
        let text = format!(
            "{}. Can be {}. Default: {default}",
            setting.doc, setting.values
        );
        render_row(&[setting.name.to_owned(), text], &mut more);
    }
    let exits = table("| exit code | meaning |")?;
    for (name, rows) in [("SIGNALS", table("| signal | |")?), ("EXIT STATUS", exits)] {
        heading(name, &mut more);
        rows.iter().for_each(|row| render_row(row, &mut more));
    }
    heading("SERVICE", &mut more);
    render(SERVICE, &mut more);
    files(&mut more);
    see_also(
        &["conserver.yml(5)", "systemctl(1)", "systemd.exec(5)"],
        &mut more,
    );
    more.to_writer(&mut page)?;
    Ok(page)
}

/// The page of a command, and those of its own commands.
fn of_command(command: &Command, pages: &mut Vec<File>) -> Result<(), Box<dyn Error>> {
    let man = man(command);
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut more = Roff::new();
    see_also(&["conserver(1)", "conserver.yml(5)"], &mut more);
    more.to_writer(&mut page)?;
    pages.push((format!("man/{}", man.get_filename()), page));
    for command in visible(command) {
        of_command(command, pages)?;
    }
    Ok(())
}

/// conserver.yml(5), from README and the configuration that comes with the package.
fn of_configuration() -> Result<Vec<u8>, Box<dyn Error>> {
    let mut page = Roff::new();
    page.control("TH", ["conserver.yml", "5", "", VERSION, MANUAL]);
    heading("NAME", &mut page);
    page.text([roman(
        "conserver.yml - links, storages and chains of conserver",
    )]);
    heading("DESCRIPTION", &mut page);
    page.text(inlines(
        "The configuration of conserver(1) is a YAML file, `/etc/conserver/config.yml` or the one that \
         `CONSERVER_CONFIG_FILE` names. It has three mappings: the links and the storages, each with a name of your \
         choice, its `module` and its `options`, and the chains that are made of them; and a fourth for the followers.",
    ));
    heading("CHAINS", &mut page);
    for (key, text) in [
        (
            "ingress_lists",
            "The Redis lists that it takes vCons from; no other chain may have one of them.",
        ),
        (
            "links",
            "The names of its links, in the order in which they run.",
        ),
        (
            "storages",
            "The names of the storages that keep what comes out.",
        ),
        (
            "egress_lists",
            "The Redis lists on which finished vCons are announced.",
        ),
        ("enabled", "0 takes its lists out of service. Default: 1"),
        (
            "timeout",
            "The seconds that one vCon may take. Default: no limit",
        ),
    ] {
        render_row(&[key.to_owned(), text.to_owned()], &mut page);
    }
    let modules = table("| module | options |")?;
    for (name, prefix) in [("LINKS", "`links."), ("STORAGES", "`storage.")] {
        heading(name, &mut page);
        page.text([roman(
            "The modules, with their options and in parentheses the defaults.",
        )]);
        let rows = modules.iter().filter(|row| row[0].starts_with(prefix));
        rows.for_each(|row| render_row(row, &mut page));
    }
    page.text([roman(
        "Each storage may also say what happens while it is unavailable, by the key on_outage:",
    )]);
    for row in table("| `on_outage` |")? {
        render_row(&row, &mut page);
    }
    heading("FOLLOWERS", &mut page);
    render(section("### Followers")?, &mut page);
    for (name, source) in [
        ("NOTES ON MODULES AND SECRETS", "### Secrets"),
        ("LINKS IN ANY LANGUAGE", "## Links in any language"),
        ("FAULTS", "## Faults"),
    ] {
        heading(name, &mut page);
        render(section(source)?, &mut page);
    }
    heading("EXAMPLE", &mut page);
    page.text([roman("The configuration that comes with the package:")]);
    render_code(DEFAULT_CONFIG, &mut page);
    files(&mut page);
    see_also(
        &["conserver(1)", "conserver-check(1)", "systemd.exec(5)"],
        &mut page,
    );
    Ok(page.render().into_bytes())
}

fn heading(name: &str, page: &mut Roff) {
    page.control("SH", [name]);
}

fn files(page: &mut Roff) {
    heading("FILES", page);
    for (file, text) in FILES {
        render_row(&[(*file).to_owned(), (*text).to_owned()], page);
    }
}

fn see_also(pages: &[&str], page: &mut Roff) {
    heading("SEE ALSO", page);
    page.text([bold(pages.join(", "))]);
}
