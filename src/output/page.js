// Without it the page is whole, and is loaded anew now and then.
const parts = ["summary", "rows", "foot"];
setInterval(async () => {
  if (document.hidden) return;
  const old = document.getElementById("old");
  try {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    for (const id of parts) document.getElementById(id).replaceWith(fresh.getElementById(id));
    old.hidden = true;
  } catch {
    old.hidden = false;
  }
}, 5000);
