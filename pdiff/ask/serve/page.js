"use strict";

const $ = (id) => document.getElementById(id);
let facts = null, current = null, asked = 0;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

async function answer(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("pdiff does not answer; is it still running?");
  }
  const said = await response.json().catch(() => ({error: response.statusText}));
  if (!response.ok) throw new Error(said.error);
  return said;
}

function number(value) {
  return String(Number(Number(value).toFixed(2)));
}

// --- asking ---------------------------------------------------------------------------------

function sample(what) {
  return request("/sample", {...what, num_samples: Number($("count").value)}, "Sampling…");
}

async function request(path, body, doing) {
  const mine = ++asked;
  $("status").textContent = doing;
  body.seed = Number($("seed").value);
  if ($("force").checked) body.force = true;
  try {
    const made = await answer(path, body);
    if (mine !== asked) return;  // a later request is on its way
    $("error").hidden = true;
    show(made, path !== "/sample");
  } catch (error) {
    if (mine !== asked) return;
    $("error").textContent = error.message;
    $("error").hidden = false;
    $("status").textContent = "";
    $("result").hidden = true;
    placeControls(null);
  }
}

function factors() {
  return facts.controls.map((control, i) => {
    const input = $(`factor-${i}`);
    return control.binary ? Number(input.checked) : Number(input.value) * control.scale;
  });
}

let waiting = null;
function moved() {
  setControls(true);
  clearTimeout(waiting);
  waiting = setTimeout(() => { $("task").value = ""; sample({factors: factors()}); }, 150);
}

// --- what can be asked ----------------------------------------------------------------------

function slider(control, i) {
  const step = (control.high - control.low) / 400;
  const value = control.low + (control.high - control.low) / 4;
  const out = element("span", {"aria-hidden": "true"});
  const input = element("input", {
    id: `factor-${i}`, type: "range", min: control.low, max: control.high, value,
    step: step >= 0.5 ? Math.max(1, Math.round(step)) : Number(step.toPrecision(1)),
  });
  input.addEventListener("shown", () => {
    const set = !$("controls").classList.contains("unset");
    out.textContent = set ? number(input.value) : "–";
    if (set) input.removeAttribute("aria-valuetext");
    else input.setAttribute("aria-valuetext", "none: what was asked for has no single value");
  });
  input.addEventListener("input", moved);
  const name = control.turning ? `${control.name}, ${control.turning} ↺` : control.name;
  const parts = [element("label", {for: `factor-${i}`}, element("span", {}, name), out), input];
  if (i === 0 && facts.regions.length) parts.push(strip(control), legend(control));
  return element("div", {class: "slider"}, ...parts);
}

function strip(control) {
  const ns = "http://www.w3.org/2000/svg";
  const make = (kind, from, to) => {
    const bar = document.createElementNS(ns, "rect");
    const span = control.high - control.low;
    for (const [n, v] of [["x", (from - control.low) / span * 1000], ["width", (to - from) / span * 1000],
                          ["height", 10]]) bar.setAttribute(n, v);
    bar.setAttribute("class", kind);
    return bar;
  };
  const svg = document.createElementNS(ns, "svg");
  for (const [n, v] of [["class", "strip"], ["viewBox", "0 0 1000 10"], ["preserveAspectRatio", "none"],
                        ["aria-hidden", "true"]]) svg.setAttribute(n, v);  // the legend says the same
  svg.append(make("ground", control.low, control.high));
  for (const region of facts.regions) {
    const [from, to] = [region.from / control.scale, region.to / control.scale];
    svg.append(make(region.split, from, Math.min(to, control.high)));
    if (to > control.high) svg.append(make(region.split, control.low, control.low + to - control.high));
  }
  return svg;
}

function legend(control) {
  const said = {
    unseen: "held out, nothing near is in the training zoo", interp: "held out, between trained ones",
    validation: "held out, used for choices",
  };
  const splits = [...new Set(facts.regions.map((r) => r.split))];
  const items = splits.map((split) => {
    const places = facts.regions.filter((r) => r.split === split)
      .map((r) => `${number(r.from / control.scale)} to ${number(r.to / control.scale)}`).join(", ");
    const mark = element("span", {class: split, "aria-hidden": "true"}, "■ ");
    return element("li", {}, mark, `${split}: ${places} (${said[split] ?? "held out"})`);
  });
  return element("ul", {class: "legend"}, ...items);
}

function choices(controls) {
  const boxes = controls.map(([control, i], k) => {
    const input = element("input", {
      id: `factor-${i}`, name: "indicator", type: facts.exclusive ? "radio" : "checkbox",
      ...(k < (facts.exclusive ? 1 : 2) ? {checked: ""} : {}),
    });
    input.addEventListener("change", moved);
    return element("label", {for: `factor-${i}`}, input, control.name);
  });
  return element("div", {class: "choices"}, ...boxes);
}

// Whether the controls stand for what was asked for last.
function setControls(set) {
  $("controls").classList.toggle("unset", !set);
  for (const input of $("controls").querySelectorAll("input[type=range]")) input.dispatchEvent(new Event("shown"));
}

// The controls as the factors that were asked for; null where these are none, or unknown.
function placeControls(factors) {
  setControls(Boolean(factors));
  if (!factors) return;
  facts.controls.forEach((control, i) => {
    const input = $(`factor-${i}`), span = control.high - control.low, value = factors[i] / control.scale;
    if (control.binary) {
      input.checked = value > 0.5;
    } else if (document.activeElement !== input) {  // not under the hand that moves it
      input.value = value > control.high ? control.low + (value - control.low) % span : value;
      input.dispatchEvent(new Event("shown"));
    }
  });
}

function prepare() {
  for (const input of document.querySelectorAll(".description"))
    for (const [name, value] of [["type", "text"], ["maxlength", 1000], ["autocomplete", "off"], ["spellcheck", false]])
      input.setAttribute(name, value);
  $("about").textContent = `This generator makes networks (${facts.target}) for the family “${facts.family}”. ` +
    `Sampler: ${facts.sampler}, chosen on validation tasks.`;
  $("prompt-row").hidden = !facts.reads_prompts;
  $("prompt").placeholder = facts.examples[0] ?? "";
  for (const prompt of facts.examples) {
    const button = element("button", {type: "button"}, prompt);
    button.addEventListener("click", () => { $("task").value = ""; sample({prompt}); });
    $("try").append(button);
  }
  $("adapt").hidden = !facts.drawable;
  $("adapt-prompt-row").hidden = !facts.reads_prompts;
  $("label").append(...facts.classes.map((name) => element("option", {value: name}, name)));
  $("count").max = facts.most_networks;
  const numbered = facts.controls.map((control, i) => [control, i]);
  const binary = numbered.filter(([c]) => c.binary);
  if (binary.length) $("controls").append(choices(binary));
  for (const [control, i] of numbered) if (!control.binary) $("controls").append(slider(control, i));
  setControls(false);
  $("controls").hidden = !facts.controls.length;
  for (const split of new Set(facts.tasks.map((t) => t.split))) {
    const names = facts.tasks.filter((t) => t.split === split).map((t) => element("option", {value: t.name}, t.name));
    $("task").append(element("optgroup", {label: split}, ...names));
  }
  $("more").open = !facts.reads_prompts;
  $("task").addEventListener("change", () => { if ($("task").value) sample({task: $("task").value}); });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    $("task").value = "";
    sample({prompt: $("prompt").value});
  });
}

// --- what comes back ------------------------------------------------------------------------

function show(made, adapted) {
  current = made.id;
  if (!adapted) $("prompt").value = made.prompt;
  $("result").hidden = false;
  $("result-title").textContent = adapted ? "What it does" : "What they do";
  placeControls(made.factors);
  const ignored = made.ignored.length ? ` Words that changed nothing: ${made.ignored.join(", ")}.` : "";
  $("understood").hidden = !made.understood;
  $("understood").textContent = made.understood ? `Read as ${made.understood}.${ignored}` : "";
  const networks = made.networks ?? [], first = networks[0]?.description;
  $("networks").hidden = !networks.length;
  $("networks").tBodies[0].replaceChildren(...networks.map((one) => element("tr", {},
    ...[one.index, one.description, one.accuracy.toFixed(3)].map((cell) => element("td", {}, String(cell))))));
  $("warnings").hidden = !made.warnings.length;
  $("warnings").replaceChildren(...made.warnings.map((warning) => element("li", {}, `Warning: ${warning}`)));
  const a = made.accuracy, right = made.images.filter((image) => image.right).length;
  $("accuracy").textContent = a ? a.mean.toFixed(3) : adapted ? `${right} of ${made.images.length}` : "–";
  $("accuracy-note").textContent = a && first
    ? `accuracy of network 0 on ${a.images} validation images of “${first}”`
    : a
      ? `accuracy on ${a.images} validation images; ${a.networks} networks, ${a.low.toFixed(3)} to ${a.high.toFixed(3)}`
      : adapted ? "of your images are answered as labelled, which says little of others"
        : "Which task this is cannot be told from the prompt, so nothing labels its images.";
  const expected = made.expected;
  $("expected").textContent = expected ? expected.mean.toFixed(3) : "–";
  $("expected-note").textContent = expected ? expected.said
    : "What to expect is not known: the run measured nothing that is like this.";
  $("answers").hidden = !made.images.length;
  $("answers-title").textContent = adapted ? "Its answers to your images" : "The first network's answers";
  $("images").replaceChildren(...made.images.map((image) => {
    const said = image.right ? `${image.predicted} ✓` : `${image.predicted} ✗ is ${image.label}`;
    const alt = `${image.label}, read as ${image.predicted}: ${image.right ? "right" : "wrong"}`;
    return element("li", {}, element("img", {src: image.src, alt}),
      element("span", {class: image.right ? "right" : "wrong", "aria-hidden": "true"}, said));
  }));
  $("maps").replaceChildren(...made.maps.map((map) => {
    const alt = `Weights of ${map.name}, ${map.shape.join(" by ")}, at most ${map.largest} in size`;
    return element("li", {}, element("img", {src: map.src, alt}), `${map.name} (${map.shape.join("×")})`);
  }));
  $("download").href = `/networks/${made.id}.safetensors`;
  $("draw").hidden = !(facts.drawable && made.images.length);
  $("draw-note").textContent = adapted ? "The network sees it as it is:"
    : first ? "Network 0 sees it as its task has it:" : "The networks see it as their task has it:";
  $("status").textContent = `${made.forced ? "Taken by force. " : ""}` +
    `Done in ${made.seconds.toFixed(2)} s${a ? `: accuracy ${a.mean.toFixed(3)}` : ""}.`;
  if (!$("draw").hidden && drawing.drawn) ask();
}

// --- drawing --------------------------------------------------------------------------------

// A canvas to draw on, by hand or by keys; `done` is called after each line and each clearing.
function pad(canvas, done) {
  const label = `${canvas.getAttribute("aria-label")}; arrow keys move the pen, space draws, delete clears`;
  for (const [name, value] of [["width", 224], ["height", 224], ["tabindex", 0], ["aria-label", label]])
    canvas.setAttribute(name, value);
  const pen = canvas.getContext("2d", {willReadFrequently: true}), side = canvas.width;
  let last = null, place = {x: side / 2, y: side / 5.6};
  const made = {drawn: false};

  function line(to) {
    pen.strokeStyle = pen.fillStyle = "#fff";
    pen.lineWidth = 26;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo((last ?? to).x, (last ?? to).y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    last = to;
    made.drawn = true;
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    return {x: (event.clientX - box.left) * canvas.width / box.width,
            y: (event.clientY - box.top) * canvas.height / box.height};
  }

  made.pixels = () => {
    const [height, width] = facts.image_shape, all = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const [tall, wide] = [canvas.height / height, canvas.width / width], pixels = [];
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
      let sum = 0, count = 0;
      for (let y = Math.floor(row * tall); y < Math.floor((row + 1) * tall); y++)
        for (let x = Math.floor(column * wide); x < Math.floor((column + 1) * wide); x++, count++)
          sum += all[4 * (y * canvas.width + x)];
      pixels.push(Number((sum / count / 255).toFixed(3)));
    }
    return pixels;
  };

  made.wipe = () => {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    made.drawn = false;
    last = null;
    done();
  };

  canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); last = null; line(at(e)); });
  canvas.addEventListener("pointermove", (e) => { if (e.buttons) line(at(e)); });
  canvas.addEventListener("pointerup", () => { last = null; done(); });
  canvas.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8]}[event.key];
    const within = (v) => Math.min(side, Math.max(0, v));
    if (step) {
      place = {x: within(place.x + step[0]), y: within(place.y + step[1])};
      if (event.shiftKey || last) line(place);
    } else if (event.key === " ") {
      if (last) { last = null; done(); } else line(place);
    } else if (event.key === "Delete") made.wipe();
    else return;
    event.preventDefault();
  });
  return made;
}

async function ask() {
  if (!drawing.drawn) {
    $("seen").hidden = true;
    $("votes").textContent = "";
    return;
  }
  try {
    const said = await answer("/draw", {id: current, pixels: drawing.pixels()});
    $("seen").src = said.image;
    $("seen").alt = "The drawing as the task has it";
    $("seen").hidden = false;
    $("votes").textContent = said.votes.map(([name, count]) => `${name}: ${count}`).join(", ") +
      (said.votes.length > 1 ? " networks" : said.votes[0][1] === 1 ? " network" : " networks");
  } catch (error) {
    $("votes").textContent = error.message;
  }
}

const drawing = pad($("canvas"), ask);
$("clear").addEventListener("click", drawing.wipe);

// --- a few labelled images ------------------------------------------------------------------

const example = pad($("example"), () => {}), examples = [];
$("example-clear").addEventListener("click", example.wipe);

$("add").addEventListener("click", () => {
  if (!example.drawn || examples.length >= facts.most_examples) {
    $("status").textContent = example.drawn ? `At most ${facts.most_examples} images.` : "Draw an image first.";
    return;
  }
  examples.push({pixels: example.pixels(), label: $("label").value, src: $("example").toDataURL()});
  $("label").selectedIndex = ($("label").selectedIndex + 1) % $("label").length;
  example.wipe();
  list();
});

function list() {
  $("examples").replaceChildren(...examples.map((one, i) => {
    const remove = element("button", {type: "button", "aria-label": `Remove image ${i + 1}, ${one.label}`}, "Remove");
    remove.addEventListener("click", () => { examples.splice(i, 1); list(); });
    return element("li", {}, element("img", {src: one.src, alt: `Image ${i + 1}`}), one.label, element("br"), remove);
  }));
}

$("adapt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const body = {images: examples.map((one) => one.pixels), labels: examples.map((one) => one.label)};
  const prompt = $("adapt-prompt").value.trim();
  if (prompt) body.prompt = prompt;
  request("/api/adapt", body, "Adapting…");
});

answer("/facts").then((found) => { facts = found; prepare(); }, (error) => { $("about").textContent = error.message; });
