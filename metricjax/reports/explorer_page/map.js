/* Every image as a point; near enough, as a picture. */

const mapView = (() => {
  const canvas = document.getElementById("map-canvas"), context = canvas.getContext("2d");
  const tip = document.getElementById("map-tip"), spoken = document.getElementById("map-spoken");
  const layout = document.getElementById("map-layout"), colour = document.getElementById("map-colour");
  const PICTURES = 140, PICTURE_SIDE = 40, FEW = 12_000;
  const plane = { points: null, scale: 1, x: 0, y: 0, width: 0, height: 0 };
  let groups = null, pointed = -1, waiting = false;

  const x = (image) => (plane.points[2 * image] - plane.x) * plane.scale + plane.width / 2;
  const y = (image) => (plane.points[2 * image + 1] - plane.y) * plane.scale + plane.height / 2;
  const has = (image) => !Number.isNaN(plane.points[2 * image]);
  const inSight = (image) => has(image) && x(image) >= 0 && x(image) <= plane.width
    && y(image) >= 0 && y(image) <= plane.height;

  /** All of the map in sight, but for the few images that lie far outside. */
  function fit() {
    const span = (side) => {
      const values = plane.points.filter((value, at) => (at & 1) === side && !Number.isNaN(value)).sort();
      const far = Math.floor(values.length / 400);
      const low = values[far], high = values[values.length - 1 - far];
      return { middle: (low + high) / 2 || 0, length: high - low || 1 };
    };
    const across = span(0), down = span(1);
    plane.x = across.middle;
    plane.y = down.middle;
    plane.scale = 0.9 * Math.min(plane.width / across.length, plane.height / down.length);
  }

  function resize() {
    const box = canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const first = !plane.width;
    const grown = first ? 1 : Math.min(box.width / plane.width, box.height / plane.height);
    const ratio = Math.min(devicePixelRatio || 1, 2);
    plane.width = box.width;
    plane.height = box.height;
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (first) fit(); else plane.scale *= grown;
    redraw();
  }

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function seen() {
    const found = [];
    for (let image = 0; image < total && found.length <= PICTURES; image++) {
      if (inSight(image)) found.push(image);
    }
    return found;
  }

  function draw() {
    if (!plane.points || !plane.width) return;
    context.clearRect(0, 0, plane.width, plane.height);
    const near = seen();
    if (near.length <= PICTURES) near.forEach(drawPicture); else drawPoints();
    if (here.image >= 0 && has(here.image)) drawChosen(here.image);
    if (pointed >= 0) ring(pointed, ink("ink"), 9);
    placeTip();
  }

  function drawPoints() {
    const size = total > 20_000 ? 2 : total > 4000 ? 3 : 5;
    const { colours, order, starts } = groups;
    const { points, scale, width, height } = plane;
    const left = width / 2 - plane.x * scale, top = height / 2 - plane.y * scale;
    context.globalAlpha = total > FEW ? 0.7 : 0.85;
    for (let group = 0; group < colours.length; group++) {
      context.fillStyle = colours[group];
      context.beginPath();
      for (let at = starts[group]; at < starts[group + 1]; at++) {
        const image = order[at];
        const px = points[2 * image] * scale + left, py = points[2 * image + 1] * scale + top;
        if (!(px > -9 && py > -9 && px < width + 9 && py < height + 9)) continue;
        if (total > FEW) context.fillRect(px - size / 2, py - size / 2, size, size);
        else {
          context.moveTo(px + size / 2, py);
          context.arc(px, py, size / 2, 0, 7);
        }
      }
      context.fill();
    }
    context.globalAlpha = 1;
  }

  function drawPicture(image) {
    const px = x(image), py = y(image), side = PICTURE_SIDE;
    context.fillStyle = groups.colours[groups.of(image)];
    context.fillRect(px - side / 2 - 2, py - side / 2 - 2, side + 4, side + 4);
    drawnAtOnce(context, image, px, py, side, redraw);
  }

  /** The image of the walker, with lines to its neighbours. */
  function drawChosen(image) {
    context.lineWidth = 1.5;
    for (let place = NEIGHBORS - 1; place >= 0; place--) {
      const other = neighbor(image, place);
      if (other === NONE || !has(other)) continue;
      context.strokeStyle = ink(!judged ? "accent" : isRight(image, other) ? "good" : "bad");
      context.beginPath();
      context.moveTo(x(image), y(image));
      context.lineTo(x(other), y(other));
      context.stroke();
      ring(other, context.strokeStyle, 5);
    }
    const side = 34, px = x(image), py = y(image);
    context.fillStyle = ink("accent");
    context.fillRect(px - side / 2 - 3, py - side / 2 - 3, side + 6, side + 6);
    drawnAtOnce(context, image, px, py, side, redraw);
  }

  function ring(image, colour, radius) {
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.beginPath();
    context.arc(x(image), y(image), radius, 0, 7);
    context.stroke();
  }

  function point(image) {
    if (image === pointed) return;
    pointed = image;
    tip.hidden = image < 0;
    canvas.style.cursor = image < 0 ? "grab" : "pointer";
    if (image >= 0) {
      tip.replaceChildren(picture(image), element("b", {}, className(image)), element("span", {}, fileName(image)));
    }
    redraw();
  }

  function placeTip() {
    if (pointed < 0) return;
    const px = x(pointed), py = y(pointed);
    tip.style.left = `${Math.max(4, Math.min(px + 14, plane.width - 164))}px`;
    const below = py < plane.height / 2;
    tip.style.top = below ? `${py + 14}px` : "auto";
    tip.style.bottom = below ? "auto" : `${plane.height - py + 14}px`;
  }

  /** The image nearest to a place on the canvas, at most so many pixels away. */
  function imageAt(px, py, most) {
    let best = most * most, found = -1;
    for (let image = 0; image < total; image++) {
      const dx = x(image) - px, dy = y(image) - py, squared = dx * dx + dy * dy;
      if (squared < best) { best = squared; found = image; }
    }
    return found;
  }

  /** The next image from another one to the right, left, above or below. */
  function imageTowards(from, [right, down]) {
    let best = Infinity, found = -1;
    for (let image = 0; image < total; image++) {
      const dx = x(image) - x(from), dy = y(image) - y(from);
      const along = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
      if (!(along > 0.5) || aside > along) continue;
      const squared = along * along + 2 * aside * aside;
      if (squared < best) { best = squared; found = image; }
    }
    return found;
  }

  /** Towards a place on the canvas. */
  function zoom(factor, px, py) {
    const dx = (px - plane.width / 2) / plane.scale, dy = (py - plane.height / 2) / plane.scale;
    plane.x += dx - dx / factor;
    plane.y += dy - dy / factor;
    plane.scale *= factor;
    redraw();
  }

  /** Towards the image of the walker if it is in sight, or the middle. */
  function zoomThere(factor) {
    const there = here.image >= 0 && inSight(here.image);
    zoom(factor, there ? x(here.image) : plane.width / 2, there ? y(here.image) : plane.height / 2);
  }

  function centre(image) {
    if (inSight(image)) return;
    plane.x = plane.points[2 * image];
    plane.y = plane.points[2 * image + 1];
  }

  const fingers = new Map();
  let dragged = 0;
  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, placeOf(event));
    dragged = fingers.size > 1 ? 99 : 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = placeOf(event), before = fingers.get(event.pointerId);
    if (!before) return point(imageAt(now.x, now.y, 14));
    const others = [...fingers].filter(([id]) => id !== event.pointerId);
    plane.x -= (now.x - before.x) / plane.scale / fingers.size;
    plane.y -= (now.y - before.y) / plane.scale / fingers.size;
    if (others.length) {
      const [, other] = others[0];
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
      zoom(apart(now) / apart(before), other.x, other.y);
    }
    dragged += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    fingers.set(event.pointerId, now);
    redraw();
  });
  const lifted = (event) => {
    const was = fingers.delete(event.pointerId);
    if (!was || event.type === "pointercancel" || dragged > 5) return;
    const place = placeOf(event), image = imageAt(place.x, place.y, event.pointerType === "touch" ? 26 : 14);
    if (image < 0) return;
    openWalker(true);
    go({ image });
  };
  canvas.addEventListener("pointerup", lifted);
  canvas.addEventListener("pointercancel", lifted);
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("blur", () => point(-1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const place = placeOf(event);
    zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 300), place.x, place.y);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const towards = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (towards) {
      const from = pointed >= 0 ? pointed : here.image >= 0 && has(here.image) ? here.image : imageAt(plane.width / 2, plane.height / 2, Infinity);
      const next = from < 0 ? -1 : imageTowards(from, towards);
      if (next >= 0) {
        centre(next);
        point(next);
        spoken.textContent = `${className(next)}, ${facts.names[next]}`;
      }
    } else if (event.key === "Enter" && pointed >= 0) go({ image: pointed });
    else if (event.key === "+" || event.key === "=") zoomThere(1.5);
    else if (event.key === "-") zoomThere(1 / 1.5);
    else if (event.key === "a") { fit(); redraw(); }
    else return;
    event.preventDefault();
  });
  document.getElementById("map-in").addEventListener("click", () => zoomThere(1.6));
  document.getElementById("map-out").addEventListener("click", () => zoomThere(1 / 1.6));
  document.getElementById("map-all").addEventListener("click", () => { fit(); redraw(); });

  function choose() {
    const chosen = facts.maps[layout.value];
    plane.points = chosen.points = chosen.points || numbers(`map${layout.value}`);
    document.getElementById("map-text").textContent = chosen.text;
    canvas.setAttribute("aria-label", `${chosen.title} map of ${counted(total, "image")}`);
    point(-1);
    if (plane.width) fit();
    redraw();
  }

  function recolour() {
    const kind = colour.value;
    groups = colourGroups(kind);
    showLegend(document.getElementById("map-legend"), groups, kind === "class" ? "classes" : "categories");
    redraw();
  }

  facts.maps.forEach((one, number) => layout.append(element("option", { value: number }, one.title)));
  const kinds = { ...(judged && { right: "right or wrong" }), class: "class" };
  if (categories) kinds.category = "category";
  for (const [value, name] of Object.entries(kinds)) colour.append(element("option", { value }, name));
  if (categories) colour.value = "category";
  layout.addEventListener("change", choose);
  colour.addEventListener("change", recolour);
  darkScheme.addEventListener("change", recolour);
  new ResizeObserver(resize).observe(canvas);

  return {
    open() {
      if (groups) return;
      recolour();
      choose();
    },
    /** The walker shows another image. */
    chosen(image) {
      if (!plane.points || !has(image)) return;
      if (plane.width) centre(image);
      redraw();
    },
  };
})();
