//! The way in where the listener can be reached from elsewhere: a form for the admin token.

use askama::Template;

use super::STYLE;

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    nonce: &'a str,
    style: &'static str,
    to: &'a str,
    wrong: bool,
}

/// The form; whoever knows the token goes on to `to`. `wrong` when another one was given.
///
/// # Errors
/// When a template fails, which none does over memory.
pub fn login(nonce: &str, to: &str, wrong: bool) -> Result<String, askama::Error> {
    LoginPage { nonce, style: STYLE, to, wrong }.render()
}
