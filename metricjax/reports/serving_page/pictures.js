// Pictures that were chosen, dropped, pasted or taken, until the page is closed.

const pictures = [];

function keep(file) {
  const name = file.name && file.name !== "image.png" ? file.name : "pasted picture";
  pictures.push({ file, name, address: URL.createObjectURL(file) });
  return pictures.length - 1;
}

// What is too large, or of a format that the server does not know, the browser may know
// how to make smaller: the network sees a few hundred pixels of it.
async function redrawn(file) {
  const side = 4096;
  const whole = await createImageBitmap(file);
  const factor = Math.min(1, side / Math.max(whole.width, whole.height));
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(whole.width * factor)),
    height: Math.max(1, Math.round(whole.height * factor)),
  });
  const drawing = canvas.getContext("2d");
  drawing.fillStyle = "white";
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.drawImage(whole, 0, 0, canvas.width, canvas.height);
  whole.close();
  return new Promise((resolve, reject) => {
    canvas.toBlob((made) => (made ? resolve(made) : reject()), "image/jpeg", 0.95);
  });
}

function send(file, parameters, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  const options = { method: "POST", body: file, headers, signal };
  return fetch(`/search?${parameters}`, options);
}

// The answer to a picture; asks again where the server was busy.
async function answerTo(kept, parameters, signal) {
  if (kept.file.size > settings.maxBytes) {
    kept.file = await redrawn(kept.file).catch(() => kept.file);
  }
  let answer = await send(kept.file, parameters, signal);
  if ([413, 415].includes(answer.status)) {
    const file = await redrawn(kept.file).catch(() => null);
    if (file) {
      kept.file = file;
      answer = await send(file, parameters, signal);
    }
  }
  for (let attempt = 0; answer.status === 503 && attempt < 3; attempt++) {
    const seconds = Number(answer.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    answer = await send(kept.file, parameters, signal);
  }
  return answer;
}

function receive(files) {
  const found = [...files].find((file) => file.type.startsWith("image/")) || files[0];
  if (found) go({ image: null, picture: keep(found) });
}

function listen() {
  for (const id of ["choose", "photograph"]) {
    element(id).addEventListener("change", (event) => {
      receive(event.target.files);
      event.target.value = "";
    });
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      receive(event.clipboardData.files);
    }
  });
  const over = (event, is) => {
    if ([...event.dataTransfer.types].includes("Files")) {
      event.preventDefault();
      document.body.classList.toggle("dragging", is);
    }
  };
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) over(event, false);
  });
  document.addEventListener("drop", (event) => {
    over(event, false);
    receive(event.dataTransfer.files);
  });
}
