//! The login page where the listener can be reached from elsewhere: a form for the admin token.

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

/// Renders the form; a correct token leads on to `to`. `wrong` is set after a token that is not correct.
///
/// # Errors
/// When a template fails, which none does when it writes to memory.
pub fn login(nonce: &str, to: &str, wrong: bool) -> Result<String, askama::Error> {
    LoginPage { nonce, style: STYLE, to, wrong }.render()
}
