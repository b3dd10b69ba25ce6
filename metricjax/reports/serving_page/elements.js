// Elements of the page. Text goes in as text, never as markup.

const element = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function symbol(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#${name}`);
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(use);
  return drawing;
}

function picture(source, words) {
  const made = make("img", { alt: words, decoding: "async" });
  made.addEventListener("load", () => sharpen(made));
  made.src = source;
  return made;
}

// Small pictures, such as letters, are enlarged without smoothing.
function sharpen(shown) {
  const small = Math.max(shown.naturalWidth, shown.naturalHeight) <= 64;
  shown.classList.toggle("pixelated", small);
}

const settings = JSON.parse(element("settings").textContent);
const numbers = new Intl.NumberFormat("en");
