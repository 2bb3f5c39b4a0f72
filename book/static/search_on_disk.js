// The search page fetches each page that it found, for a few lines of its text. A browser refuses that for files on the
// disk. There the texts come from a script instead, which book/conf.py writes when the book is built.
if (location.protocol === "file:") {
  const script = document.createElement("script");
  script.src = new URL("search_texts.js", document.currentScript.src).href;
  const loaded = new Promise((resolve) => {
    script.onload = () => resolve(window.qtutorTexts);
    script.onerror = () => resolve({});
  });
  document.head.append(script);
  const asked = window.fetch;
  window.fetch = (address, ...rest) => {
    const name = new URL(address, location.href).pathname.split("/").pop();
    return loaded.then((texts) => (name in texts ? new Response(texts[name]) : asked(address, ...rest)));
  };
}
