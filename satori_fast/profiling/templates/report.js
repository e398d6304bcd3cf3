"use strict";
// The sample browser: filters, a count of what matches, one sample at a time. Everything that came
// from the run is written as text, never as HTML.
(() => {
  const [samples, colours] = ["sample-data", "sample-colours"]
    .map((id) => JSON.parse(document.getElementById(id).textContent));
  const FINISHES = {stop: "ended by itself", length: "cut off at the longest length"};
  const form = document.getElementById("filters");
  const place = document.getElementById("sample");
  const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
  let matching = samples;
  let current = 0;

  const element = (name, className = "", ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  // In the colour that the run's format has for a kind of segment, if it has one.
  const coloured = (made, kind) => {
    if (Object.hasOwn(colours, kind)) made.style.setProperty("--kind", colours[kind]);
    return made;
  };
  const kindsOf = (sample) => sample.segments.map((segment) => segment.kind);
  const joined = (pieces) => (pieces ?? []).map((piece) => piece.text).join("\n");
  const textOf = (sample) => [
    sample.question, joined(sample.prefix), joined(sample.segments), sample.answer, sample.id,
  ].join("\n");
  const pattern = () => {
    const wanted = form.elements.text.value.trim();
    return wanted ? new RegExp(`(${wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")})`, "i") : null;
  };

  // A text whose matches of `found` are marked: every second piece of the split is one.
  function textElement(name, className, text, found) {
    const made = element(name, className);
    const pieces = found ? text.split(new RegExp(found.source, "gi")) : [text];
    pieces.forEach((piece, i) => made.append(i % 2 ? element("mark", "", piece) : piece));
    return made;
  }

  function segmentElement(segment, found) {
    const label = element("span", "", segment.kind);
    if (segment.verdict) label.append(element("em", "", `says ${segment.verdict}`));
    const made = element("div", "segment", label,
      textElement("span", "text", segment.text, found));
    if (segment.signal) made.append(element("small", "", segment.signal.join(" \u00b7 ")));
    return coloured(made, segment.kind);
  }

  function show() {
    const count = matching.length;
    current = Math.max(0, Math.min(current, count - 1));
    previous.disabled = current <= 0;
    next.disabled = current >= count - 1;
    const rest = count < samples.length ? ` matching, ${samples.length} in all` : "";
    document.getElementById("matches").textContent =
      count ? `${current + 1} of ${count}${rest}` : `0 of ${samples.length} match`;
    place.replaceChildren();
    if (!count) {
      place.append(element("p", "note", "No sample matches these filters."));
      return;
    }
    const sample = matching[current];
    const found = pattern();
    const rewards = Object.entries(sample.rewards)
      .filter(([name, value]) => name === "total" || Number(value) !== 0)
      .map(([name, value]) => `${name} ${value}`);
    place.append(
      element("header", "", element("b", sample.verdict, sample.verdict),
        element("span", "", sample.place ?? `${sample.stage}, step ${sample.step}`), element("span", "", sample.id),
        element("span", "", FINISHES[sample.finish] ?? sample.finish)),
      element("h4", "", "Question"), textElement("p", "text", sample.question, found),
    );
    if (sample.prefix) {
      const given = element("div", "given", ...sample.prefix.map((s) => segmentElement(s, found)));
      place.append(element("h4", "", "Given: the restart prefix"), given);
    }
    place.append(element("h4", "", "Response"),
      ...sample.segments.map((segment) => segmentElement(segment, found)),
      element("h4", "", "Right answer"), textElement("p", "text", sample.answer, found));
    if (rewards.length) {
      place.append(element("h4", "", sample.notes ?? "Reward"), element("p", "text", rewards.join(" \u00b7 ")));
    }
  }

  function filter() {
    const {stage, verdict, start, from, to} = form.elements;
    const kinds = [...form.querySelectorAll(".chip input:checked")].map((input) => input.value);
    const found = pattern();
    matching = samples.filter((sample) =>
      (!stage.value || sample.stage === stage.value)
      && (!verdict.value || sample.verdict === verdict.value)
      && (!start.value || (start.value === "restart") === (sample.prefix !== null))
      && (from.value === "" || sample.step >= Number(from.value))
      && (to.value === "" || sample.step <= Number(to.value))
      && kinds.every((kind) => kindsOf(sample).includes(kind))
      && (!found || found.test(textOf(sample))));
    current = 0;
    show();
  }

  for (const stage of new Set(samples.map((sample) => sample.stage))) {
    form.elements.stage.append(new Option(stage, stage));
  }
  const present = new Set(samples.flatMap(kindsOf));
  const known = Object.keys(colours).filter((kind) => present.has(kind));
  for (const kind of new Set([...known, ...present])) {
    const box = Object.assign(element("input"), {type: "checkbox", value: kind});
    form.querySelector("fieldset").append(
      coloured(element("label", "chip", box, element("b"), kind), kind));
  }
  const move = (by) => { current += by; show(); };
  previous.onclick = () => move(-1);
  next.onclick = () => move(1);
  form.oninput = filter;
  form.onsubmit = (event) => event.preventDefault();
  form.onreset = () => setTimeout(filter); // the fields are cleared after this event
  document.addEventListener("keydown", (event) => {
    const inField = event.target.closest("input, select, button, a, summary, textarea");
    const visible = place.getBoundingClientRect();
    if (inField || visible.top > innerHeight || visible.bottom < 0) return;
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  show();
})();
