//! Help, completions and manual pages: generated for every verb, in a form that shells and `man` accept.

use std::process::Command;

use feedmirror::cli::command;

use crate::workspace::Workspace;

fn verbs() -> Vec<String> {
    command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
}

#[test]
fn every_verb_explains_itself() {
    let workspace = Workspace::new();
    for verb in verbs() {
        let ran = workspace.run(&[&verb, "--help"]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{verb}");
        assert!(ran.out.contains(&format!("Usage: feedmirror {verb}")), "{}", ran.out);
    }
    let all = workspace.run(&["--help"]);
    assert!(verbs().iter().all(|verb| all.out.contains(&format!("\n  {verb} "))), "{}", all.out);
    assert_eq!(workspace.run(&["--version"]).out, format!("feedmirror {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_refused_on_standard_error() {
    let workspace = Workspace::new();
    for (arguments, hint) in [
        (&["stauts"][..], "status"),
        (&["status", "--jsn"], "--json"),
        (&["-v", "-q", "status"], "cannot be used with"),
        (&[], "Usage: feedmirror"),
        (&["pause"], "<FEED>"),
    ] {
        let ran = workspace.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.err.contains(hint), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn completions_know_every_verb_and_bash_can_read_them() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = workspace.run(&["completions", shell]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{shell}");
        let missing: Vec<String> = verbs().into_iter().filter(|verb| !ran.out.contains(verb.as_str())).collect();
        assert!(missing.is_empty(), "{shell} lacks {missing:?}");
        workspace.write(shell, &ran.out);
    }
    let read = Command::new("bash").arg("-n").arg(workspace.path("bash")).output().expect("bash");
    assert!(read.status.success() && read.stderr.is_empty(), "{read:?}");
    // and completes: `sta` can only become `status`
    let complete = "source ./bash; COMP_WORDS=(feedmirror sta); COMP_CWORD=1; _feedmirror feedmirror sta feedmirror; echo \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash").args(["-c", complete]).current_dir(workspace.path("")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "status\n", "{completed:?}");
}

#[test]
fn there_is_a_manual_page_for_the_program_and_for_every_verb() {
    let workspace = Workspace::new();
    let whole = workspace.run(&["man"]);
    assert_eq!(whole.code, Some(0));
    assert!(whole.out.contains(".SH NAME\nfeedmirror"), "{}", whole.out);

    assert_eq!(workspace.run(&["man", "--to", "pages"]).code, Some(0));

    for verb in verbs() {
        // Roff writes a hyphen as `\-`.
        assert!(whole.out.contains(&verb.replace('-', "\\-")), "the page lacks {verb}");
        let page = std::fs::read_to_string(workspace.path("pages").join(format!("feedmirror-{verb}.1"))).unwrap();
        assert!(page.contains(".SH NAME\n") && page.contains(".SH SYNOPSIS\n"), "{page}");
    }
}
