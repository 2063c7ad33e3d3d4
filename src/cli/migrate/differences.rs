//! What conserver does otherwise than the existing worker, on purpose: one table, for the plan of a deployment
//! and for the manual.

use std::collections::HashSet;

use super::deployment::{Deployment, Generation};
use crate::config::{Chain, NamedModule, Section};

/// One thing that differs.
pub(super) struct Difference {
    /// Its name in the JSON of the plan.
    pub id: &'static str,
    /// What it is about.
    pub what: &'static str,
    /// What the existing worker does.
    pub existing: &'static str,
    /// What conserver does.
    pub conserver: &'static str,
    /// What of a deployment it concerns; `None` if it does not.
    pub concerns: fn(&Deployment) -> Option<Vec<String>>,
}

/// All of them.
#[rustfmt::skip]
pub(super) const DIFFERENCES: &[Difference] = &[
    Difference {
        id: "egress_after_storage",
        what: "the order of egress and storages",
        existing: "egress before the storages",
        conserver: "the storages first, then egress: who reads an egress list finds the vCon stored",
        concerns: |it| some(it.chains(|chain| !chain.egress_lists.is_empty() && !chain.storages.is_empty())),
    },
    Difference {
        id: "failed_storage",
        what: "a storage that fails",
        existing: "is logged; in the newer generation the vCon gets a dead letter of the storage at once",
        conserver: "is waited for while it is unavailable (with `on_outage: defer` without holding up its chains); \
                    a vCon that it refuses gets a dead letter of the storage",
        concerns: |it| some(it.used(Section::Storages, |_| true)),
    },
    Difference {
        id: "lost_worker",
        what: "a worker that dies",
        existing: "its vCon is lost",
        conserver: "another one takes the vCon, from the first link on",
        concerns: always,
    },
    Difference {
        id: "unavailable_server",
        what: "a server that is unavailable",
        existing: "vCons fail, or storages miss them",
        conserver: "they wait, and are tried again until it is back",
        concerns: |it| {
            let mut found = it.used(Section::Links, |link| link.module != "links.tag");
            found.retain(|name| it.calls_a_server(name));
            found.extend(it.used(Section::Storages, |storage| storage.module != "storage.file"));
            some(found)
        },
    },
    Difference {
        id: "changes_at_once",
        what: "two changes of one vCon at the same time",
        existing: "the last one wins",
        conserver: "both are kept",
        concerns: always,
    },
    Difference {
        id: "chain_enabled",
        what: "`enabled: 0` of a chain",
        existing: "ignored: the chain works",
        conserver: "kept: its lists fill up until it is enabled",
        concerns: |it| some(it.chains(|chain| !chain.enabled)),
    },
    Difference {
        id: "chain_timeout",
        what: "`timeout` of a chain",
        existing: "ignored",
        conserver: "kept: a vCon that takes longer goes back to its list, and is tried again",
        concerns: |it| some(it.chains(|chain| chain.timeout.is_some())),
    },
    Difference {
        id: "no_document",
        what: "a UUID without a document",
        existing: "a chain without links announces it, `links.tag` ends the chain",
        conserver: "dead letter, stage `load`",
        concerns: |it| some(it.chains(|chain| !chain.ingress_lists.is_empty())),
    },
    Difference {
        id: "unwritten_storage",
        what: "storages, and a vCon that no link has written",
        existing: "get it as it was read",
        conserver: "get it in today's form",
        concerns: |it| some(it.used(Section::Storages, |_| true)),
    },
    Difference {
        id: "unwritten_webhook",
        what: "`links.webhook` before any link has written",
        existing: "posts the document as it was read",
        conserver: "posts it in today's form",
        concerns: |it| some(it.links_of("links.webhook")),
    },
    Difference {
        id: "created_at",
        what: "a missing or unreadable `created_at`",
        existing: "file: flat under `path`; S3, PostgreSQL: not stored, only logged",
        conserver: "today's date, and a warning; flat files are found as well",
        concerns: |it| some(it.used(Section::Storages, |storage| {
            ["storage.file", "storage.s3", "storage.postgres"].contains(&&*storage.module)
        })),
    },
    Difference {
        id: "dead_letter_expiry_0",
        what: "`VCON_DLQ_EXPIRY=0`",
        existing: "the time to live of a dead letter's document stays, though the older generation documents that it \
                   no longer expires",
        conserver: "it stays: a document that has one still expires",
        concerns: |it| {
            let is_zero = it.variables.text("VCON_DLQ_EXPIRY").is_some_and(|text| text.trim() == "0");
            is_zero.then(|| vec!["VCON_DLQ_EXPIRY".to_owned()])
        },
    },
    Difference {
        id: "tag_twice",
        what: "the same tag twice",
        existing: "is there twice",
        conserver: "is there once",
        concerns: |it| some(it.links_of("links.tag")),
    },
    Difference {
        id: "route_twice",
        what: "two tags with one route",
        existing: "the UUID is pushed twice",
        conserver: "it is pushed once",
        concerns: |it| some(it.used(Section::Links, |link| {
            let routes = link.values_in("tag_routes");
            let different: HashSet<&String> = routes.iter().collect();
            link.module == "links.tag_router" && different.len() < routes.len()
        })),
    },
    Difference {
        id: "jq_error",
        what: "an error in a `links.jq_link` filter",
        existing: "the vCon is filtered out",
        conserver: "dead letter",
        concerns: |it| some(it.links_of("links.jq_link")),
    },
    Difference {
        id: "jq_language",
        what: "what a `links.jq_link` filter may use",
        existing: "all of jq",
        conserver: "not `env`, `debug`, `stderr`, `halt` and `input`; at most 4096 bytes; a filter without end stops \
                    at the chain's `timeout`",
        concerns: |it| some(it.links_of("links.jq_link")),
    },
    Difference {
        id: "sampler_seed",
        what: "`links.sampler` with `seed`",
        existing: "one decision for all vCons",
        conserver: "one for each",
        concerns: |it| some(it.used(Section::Links, |link| {
            link.module == "links.sampler" && link.has_option("seed")
        })),
    },
    Difference {
        id: "model_selection",
        what: "links that ask language models: `sampling_rate`",
        existing: "drawn anew each time; 0 takes all vCons",
        conserver: "the same answer for a vCon each time; 0 takes none",
        concerns: |it| some(it.used(Section::Links, |link| {
            asks_a_model(link) && link.has_option("sampling_rate")
        })),
    },
    Difference {
        id: "model_failure",
        what: "links that ask language models: a dialog that fails",
        existing: "the vCon is a dead letter, and what other dialogs got is lost",
        conserver: "the others keep their results, and are not asked about again; a server that refuses the key, the \
                    model or the quota holds the chain",
        concerns: |it| some(it.used(Section::Links, asks_a_model)),
    },
    Difference {
        id: "model_source",
        what: "links that ask language models: a text that is JSON text, a list or an object",
        existing: "`links.analyze` and `links.analyze_and_label` do not look into JSON text, and fail on a list",
        conserver: "all look into JSON text; a list or an object is handed over as JSON",
        concerns: |it| some(it.used(Section::Links, asks_a_model)),
    },
    Difference {
        id: "model_credentials",
        what: "`links.detect_engagement` without credentials in its options",
        existing: "takes OPENAI_API_KEY from the environment, or passes the vCon on",
        conserver: "takes OPENAI_API_KEY, or those of LiteLLM or Azure, from the environment; without any, vCons wait",
        concerns: |it| some(it.used(Section::Links, |link| {
            let credentials = [
                "OPENAI_API_KEY", "openai_api_key", "api_key", "AZURE_OPENAI_API_KEY", "LITELLM_MASTER_KEY",
            ];
            let has_any = credentials.iter().any(|key| link.has_option(key));
            link.module == "links.detect_engagement" && link.native && !has_any
        })),
    },
    Difference {
        id: "shared_evaluations",
        what: "two `links.check_and_tag` with one `analysis_type`",
        existing: "the second passes over each dialog that the first has asked about",
        conserver: "each asks its own question",
        concerns: |it| {
            let links = it.links_of("links.check_and_tag");
            (links.len() > 1).then_some(links)
        },
    },
    Difference {
        id: "evaluation_answer",
        what: "`links.check_and_tag`: a reply without `applies`",
        existing: "means no",
        conserver: "the dialog has failed",
        concerns: |it| some(it.links_of("links.check_and_tag")),
    },
    Difference {
        id: "slack_text",
        what: "`links.post_analysis_to_slack`: a dialog without a summary",
        existing: "fails the vCon",
        conserver: "the analysis itself is posted",
        concerns: |it| some(it.links_of("links.post_analysis_to_slack")),
    },
    Difference {
        id: "slack_channel",
        what: "`links.post_analysis_to_slack`: a channel that is not there",
        existing: "a note in the default channel, and the vCon is a dead letter",
        conserver: "the default channel gets the message itself; then a dead letter if it is a team's channel, and the \
                    chain waits if it is the default one",
        concerns: |it| some(it.links_of("links.post_analysis_to_slack")),
    },
    Difference {
        id: "diet_types",
        what: "`links.diet`: `remove_attachment_types`, `remove_system_prompts`",
        existing: "look at `mime_type` only, and pass over JSON text",
        conserver: "look at `mediatype` and `mimetype` too, and into JSON text",
        concerns: |it| some(it.used(Section::Links, |link| {
            let is_on = |key| link.has_option(key) && link.option(key) != Some("false");
            link.module == "links.diet" && (is_on("remove_attachment_types") || is_on("remove_system_prompts"))
        })),
    },
    Difference {
        id: "diet_nothing",
        what: "`links.diet` with nothing to do",
        existing: "rewrites the document in today's form",
        conserver: "leaves it",
        concerns: |it| some(it.links_of("links.diet")),
    },
    Difference {
        id: "diet_post",
        what: "`links.diet`: a body that could not be posted",
        existing: "is dropped",
        conserver: "stays, and the link has failed",
        concerns: |it| some(it.used(Section::Links, |link| {
            link.module == "links.diet" && link.has_option("post_media_to_url")
        })),
    },
    Difference {
        id: "transcribe_dialog",
        what: "`links.transcribe`: a dialog that cannot be transcribed",
        existing: "ends the loop, mostly with nothing but a line in the log: dialogs behind it get no transcript, and \
                   deepgram loses those before it",
        conserver: "the others are transcribed and kept, each as soon as it is there; the dead letter names the \
                    dialog, and a retry pays for it alone",
        concerns: |it| some(it.transcribers(|_| true)),
    },
    Difference {
        id: "transcribe_duration",
        what: "`links.transcribe`: a recording without `duration`",
        existing: "an error with groq and hugging_face",
        conserver: "is transcribed",
        concerns: |it| some(it.transcribers(|_| true)),
    },
    Difference {
        id: "transcribe_inline",
        what: "`links.transcribe`: audio in the vCon itself",
        existing: "is not transcribed by deepgram and openai",
        conserver: "is transcribed by all vendors",
        concerns: |it| some(it.transcribers(|_| true)),
    },
    Difference {
        id: "transcribe_urls",
        what: "`links.transcribe`: URLs that lead to private addresses",
        existing: "are fetched",
        conserver: "are refused, unless `allow_private_urls: true`",
        concerns: |it| some(it.transcribers(|link| {
            link.option("allow_private_urls").is_none_or(|it| it == "false")
        })),
    },
    Difference {
        id: "transcribe_pieces",
        what: "`links.transcribe` with openai: long audio",
        existing: "is cut into pieces of `max_chunk_duration`",
        conserver: "is sent whole; more than 25 MB, or than the model takes, makes a dead letter",
        concerns: |it| some(it.transcribers(|link| {
            link.module == "links.openai_transcribe" || link.option("vendor") == Some("openai")
        })),
    },
    Difference {
        id: "webhook_status",
        what: "`storage.webhook`: an answer other than 2xx",
        existing: "passed over by the older generation, a failure in the newer",
        conserver: "a failure",
        concerns: |it| match it.generation.is {
            Generation::Newer => None,
            _ => some(it.storages_of("storage.webhook")),
        },
    },
    Difference {
        id: "half_files",
        what: "`storage.file`: a reader during a save",
        existing: "may see half a file",
        conserver: "sees a whole file or none: it is written to a temporary name and renamed",
        concerns: |it| some(it.storages_of("storage.file")),
    },
    Difference {
        id: "json_text",
        what: "JSON text in files and S3",
        existing: "`\", \"` and `\\u` escapes",
        conserver: "compact UTF-8",
        concerns: |it| some(it.used(Section::Storages, |storage| {
            ["storage.file", "storage.s3"].contains(&&*storage.module)
        })),
    },
    Difference {
        id: "elasticsearch_parts",
        what: "`storage.elasticsearch`: parts of a vCon",
        existing: "a request for each; a vCon without dialogs is not indexed; parts that are gone stay",
        conserver: "one request; indexed; removed. A part that is refused is a failure",
        concerns: |it| some(it.storages_of("storage.elasticsearch")),
    },
    Difference {
        id: "elasticsearch_certificates",
        what: "`storage.elasticsearch`: certificates",
        existing: "are not verified",
        conserver: "are verified, by the system or `ca_certs`, unless `verify_certs: false`",
        concerns: |it| some(it.used(Section::Storages, |storage| {
            let is_plain = storage.option("url").is_some_and(|url| url.starts_with("http://"));
            storage.module == "storage.elasticsearch" && !is_plain
        })),
    },
    Difference {
        id: "follower_loss",
        what: "a follower cannot fetch a vCon that it took",
        existing: "the UUID is lost",
        conserver: "tried again; a dead letter if the other server does not have it",
        concerns: followers,
    },
    Difference {
        id: "follower_other",
        what: "a follower pulls a vCon that is here already with other content",
        existing: "the pulled document replaces it",
        conserver: "it stays; the pulled one is kept beside a dead letter",
        concerns: followers,
    },
    Difference {
        id: "pip_name",
        what: "`pip_name`",
        existing: "is installed when the import fails",
        conserver: "nothing is installed unless CONSERVER_PIP_INSTALL=yes",
        concerns: |it| some(it.named(|module| module.package.is_some())),
    },
    Difference {
        id: "python_threads",
        what: "Python modules: vCons at the same time",
        existing: "threads of one interpreter for each worker",
        conserver: "an interpreter for each lane",
        concerns: python_modules,
    },
    Difference {
        id: "python_unavailable",
        what: "Python modules: an exception that says that a server is unavailable",
        existing: "fails the vCon",
        conserver: "the vCon waits and is tried again",
        concerns: python_modules,
    },
    Difference {
        id: "python_crash",
        what: "Python modules: a call that crashes the interpreter",
        existing: "ends the worker, and loses its vCons",
        conserver: "the vCon is tried again; others do not notice",
        concerns: python_modules,
    },
    Difference {
        id: "python_hangs",
        what: "Python modules: a call that hangs",
        existing: "holds up a thread",
        conserver: "is killed after CONSERVER_PYTHON_TIMEOUT, or `timeout` beside `module`",
        concerns: python_modules,
    },
    Difference {
        id: "one_worker",
        what: "`CONSERVER_WORKERS=1`",
        existing: "the vCons are worked on in the main process: a crash ends the service",
        conserver: "a worker process of its own, which is replaced if it dies",
        concerns: |it| (it.settings.workers == 1).then(Vec::new),
    },
    Difference {
        id: "wrong_settings",
        what: "a setting with a value that it cannot have",
        existing: "a typo in CONSERVER_PARALLEL_STORAGE means off; others end the start or count as the default",
        conserver: "ends the start, with every such setting named",
        concerns: |it| (!it.settings_faults.is_empty()).then(Vec::new),
    },
    Difference {
        id: "config_file_default",
        what: "`CONSERVER_CONFIG_FILE` is not set",
        existing: "`./example_config.yml`",
        conserver: "`/etc/conserver/config.yml`, else `./config.yml`",
        concerns: |it| it.variables.get("CONSERVER_CONFIG_FILE").is_none().then(Vec::new),
    },
];

/// The names of the link that transcribes.
const TRANSCRIBERS: [&str; 5] = [
    "links.transcribe",
    "links.deepgram_link",
    "links.openai_transcribe",
    "links.groq_whisper",
    "links.hugging_face_whisper",
];

impl Deployment {
    /// The chains of which `is_meant` holds, as `chain NAME`.
    fn chains(&self, is_meant: impl Fn(&Chain) -> bool) -> Vec<String> {
        let chains = self.outline.plan.chains.iter();
        let chains = chains.filter(|chain| is_meant(chain));
        chains
            .map(|chain| format!("chain {}", chain.name))
            .collect()
    }

    /// The entries of the file of which `is_meant` holds, as `link NAME`.
    fn named(&self, is_meant: impl Fn(&NamedModule) -> bool) -> Vec<String> {
        let modules = self.outline.modules.iter();
        let modules = modules.filter(|module| is_meant(module));
        modules
            .map(|module| format!("{} {}", module.section.noun(), module.name))
            .collect()
    }

    /// Those of a section that a chain names. Chains out of service count: the existing worker works on them.
    fn used(&self, section: Section, is_meant: impl Fn(&NamedModule) -> bool) -> Vec<String> {
        self.named(|module| {
            module.section == section
                && is_meant(module)
                && !self.outline.chains_of(module).is_empty()
        })
    }

    fn links_of(&self, module: &str) -> Vec<String> {
        self.used(Section::Links, |link| link.module == module && link.native)
    }

    /// The links that transcribe, built in, of which `is_meant` holds.
    fn transcribers(&self, is_meant: impl Fn(&NamedModule) -> bool) -> Vec<String> {
        self.used(Section::Links, |link| {
            link.is_built_in() && TRANSCRIBERS.contains(&&*link.module) && is_meant(link)
        })
    }

    fn storages_of(&self, module: &str) -> Vec<String> {
        self.used(Section::Storages, |storage| {
            storage.module == module && storage.native
        })
    }

    /// Whether a link asks a server, as far as that is known.
    fn calls_a_server(&self, named: &str) -> bool {
        let mut modules = self.outline.modules.iter();
        let link = modules.find(|it| {
            it.section == Section::Links && named.strip_prefix("link ") == Some(it.name.as_str())
        });
        link.is_some_and(|link| {
            ["links.webhook", "links.post_analysis_to_slack"].contains(&&*link.module)
                || asks_a_model(link)
                || TRANSCRIBERS.contains(&&*link.module)
                || link.module == "links.diet" && link.has_option("post_media_to_url")
                || link.is_python()
        })
    }
}

/// Whether a link is one of those that ask a language model, built in.
fn asks_a_model(link: &NamedModule) -> bool {
    let asking = [
        "links.analyze",
        "links.analyze_and_label",
        "links.analyze_vcon",
        "links.check_and_tag",
        "links.detect_engagement",
    ];
    link.native && asking.contains(&&*link.module)
}

fn always(_: &Deployment) -> Option<Vec<String>> {
    Some(Vec::new())
}

fn python_modules(deployment: &Deployment) -> Option<Vec<String>> {
    some(deployment.named(NamedModule::is_python))
}

fn followers(deployment: &Deployment) -> Option<Vec<String>> {
    let names = deployment.outline.followers.iter();
    some(names.map(|name| format!("follower {name}")).collect())
}

fn some(found: Vec<String>) -> Option<Vec<String>> {
    (!found.is_empty()).then_some(found)
}

/// The table as Markdown, for conserver-migration(7).
pub fn markdown_table() -> String {
    let mut text = String::from("| what | the Python worker | conserver |\n|---|---|---|\n");
    for it in DIFFERENCES {
        text += &format!("| {} | {} | {} |\n", it.what, it.existing, it.conserver);
    }
    text
}
