// What is asked stands after the # of the address: image or picture, and the filters.

const FIELDS = ["image", "picture", "category", "class", "top"];
let running = null;
let seed = 0;

function state() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(FIELDS.map((name) => [name, given.get(name)]));
}

// The address of the present state with some changes; null takes a field away.
function addressOf(changes) {
  const next = { ...state(), ...changes };
  if (changes.image !== undefined && changes.image !== null) next.picture = null;
  const given = new URLSearchParams();
  for (const name of FIELDS) {
    if (next[name] !== null && next[name] !== "") given.set(name, next[name]);
  }
  return `#${given}`;
}

function go(changes) {
  const address = addressOf(changes);
  if (address === location.hash) show();
  else location.hash = address;
}

function say(text) {
  element("status").textContent = text;
}

function complain(sentence) {
  element("problem").textContent = sentence;
  element("problem").hidden = !sentence;
}

function showFilters(now) {
  for (const name of ["category", "class", "top"]) {
    const field = element(name);
    if (field) field.value = now[name] || (name === "top" ? "12" : "");
  }
}

function showAsked(query, address) {
  element("asked").hidden = !query;
  element("hint").hidden = Boolean(query);
  document.body.classList.toggle("asks", Boolean(query));
  if (!query) return;
  const shown = element("asked-picture");
  shown.alt = "The picture that is searched for";
  shown.src = query.thumbnail;
  element("asked-class").textContent = query.class || "";
  element("asked-category").textContent = query.category || "";
  element("asked-name").textContent = query.path;
  element("asked-explorer").hidden = !query.explorer;
  element("asked-explorer").href = query.explorer || "";
  remember({ ...query, address, title: query.class || query.path });
}

// The parameters of a request that stand in the address.
function parameters(now, ...fields) {
  const found = new URLSearchParams();
  for (const name of fields) if (now[name]) found.set(name, now[name]);
  return found;
}

async function showSamples(now, signal) {
  const wanted = parameters(now, "category", "class");
  wanted.set("seed", seed);
  const answer = await fetch(`/samples?${wanted}`, { signal });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  element("heading").textContent = "Or try one of these";
  say("");
  showCards(found.images);
}

async function showNeighbors(now, signal) {
  const wanted = parameters(now, "top", "category", "class");
  const kept = now.image === null ? pictures[Number(now.picture)] : null;
  if (kept) {
    const query = { path: kept.name, thumbnail: kept.address, key: `p${now.picture}` };
    showAsked(query, location.hash);
  }
  say("Searching");
  if (!kept) wanted.set("image", now.image);
  const answer = kept
    ? await answerTo(kept, wanted, signal)
    : await fetch(`/search?${wanted}`, { signal });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  if (!kept) showAsked({ ...found.query, key: `i${now.image}` }, location.hash);
  element("heading").textContent = "Nearest";
  say(summary(found));
  showCards(found.neighbours);
}

function summary(found) {
  const among = numbers.format(found.searched);
  if (!found.neighbours.length) return `None of ${among} images can be found so.`;
  const time = numbers.format(Math.max(1, Math.round(found.milliseconds)));
  const all = `${found.neighbours.length} of ${among} images in ${time} ms`;
  if (found.threshold === null) return all;
  const same = found.neighbours.filter((one) => one.same).length;
  const least = found.threshold.similarity.toFixed(3);
  const rate = `${Number((100 * found.threshold.false_match_rate).toPrecision(2))}%`;
  return `${all}; ${same} the same (${least} or more; ${rate} false matches)`;
}

async function show() {
  if (running) running.abort();
  const mine = (running = new AbortController());
  const now = state();
  const asks = now.image !== null || pictures[Number(now.picture ?? NaN)] !== undefined;
  const inside = element("results").contains(document.activeElement);
  complain("");
  showFilters(now);
  element("others").hidden = asks;
  document.body.classList.add("waits");
  try {
    if (asks) await showNeighbors(now, mine.signal);
    else {
      showAsked(null);
      await showSamples(now, mine.signal);
    }
    if (inside) element("heading").focus({ preventScroll: true });
    if (asks) window.scrollTo({ top: 0 });
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    element("results").replaceChildren();
    const lost = error instanceof TypeError;
    complain(lost ? "The server does not answer: is it still running?" : error.message);
  } finally {
    if (running === mine) document.body.classList.remove("waits");
  }
}

let typing = 0;

async function suggest(field) {
  const answer = await fetch(`/classes?like=${encodeURIComponent(field.value)}`);
  const found = await answer.json();
  const options = found.classes.map((name) => make("option", { value: name }));
  element("classes").replaceChildren(...options);
}

function start() {
  listen();
  listenToArrows();
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["category", "class", "top"]) {
    const field = element(name);
    if (field) field.addEventListener("change", () => go({ [name]: field.value.trim() }));
  }
  const field = element("class");
  if (field) {
    const soon = () => {
      clearTimeout(typing);
      typing = setTimeout(() => suggest(field).catch(() => {}), 120);
    };
    field.addEventListener("input", soon);
    field.addEventListener("focus", soon);
  }
  element("asked-picture").addEventListener("load", (event) => sharpen(event.target));
  element("clear").addEventListener("click", () => go({ image: null, picture: null }));
  element("others").addEventListener("click", () => {
    seed += 1;
    show();
  });
  document.addEventListener("keydown", (event) => {
    const typed = event.target.closest("input, select");
    if (event.key === "Escape" && !typed) go({ image: null, picture: null });
  });
  window.addEventListener("hashchange", show);
  show();
}

start();
