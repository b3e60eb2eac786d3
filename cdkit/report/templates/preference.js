"use strict";
// The page of a preference study. What is answered lies in this browser's storage until it is downloaded.
const study = JSON.parse(document.getElementById("study").textContent);
const STORE = `cdkit-preference-${study.study}`;
const CHOICES = ["left", "right", "same"];
const WORDS = { left: "Left", right: "Right", same: "No difference" };
const element = (name) => document.getElementById(name);

function fresh() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { rater: `rater-${random[0].toString(36)}${random[1].toString(36)}`, answers: {} };
}

function stored() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    return kept && typeof kept.rater === "string" && kept.answers ? kept : fresh();
  } catch {
    return fresh();
  }
}

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    element("trouble").textContent =
      "This browser keeps nothing for this page: finish without closing it, and download the answers.";
    element("trouble").hidden = false;
  }
}

const state = stored();
let place = 0;

const answered = (pair) => study.questions.every((question) => (state.answers[pair.name] || {})[question.name]);
const open = () => study.pairs.findIndex((pair) => !answered(pair));

function show(name) {
  for (const section of ["start", "judge", "end"]) element(section).hidden = section !== name;
  scrollTo(0, 0);
}

function picture(uri, description) {
  const image = new Image();
  image.src = uri;
  image.alt = description;
  return image;
}

function showConcepts(pair) {
  const parts = pair.concepts.map((number) => {
    const concept = study.concepts[number];
    const part = document.createElement("div");
    const heading = document.createElement("p");
    heading.className = "meta";
    heading.textContent = `Photos of the ${concept.word}:`;
    const photos = document.createElement("div");
    photos.className = "photos";
    photos.append(...concept.photos.map((uri) => picture(uri, `a photo of the ${concept.word}`)));
    part.append(heading, photos);
    return part;
  });
  element("concepts").replaceChildren(...parts);
}

function choiceOf(pair, question, choice) {
  const label = document.createElement("label");
  const button = document.createElement("input");
  button.type = "radio";
  button.name = question.name;
  button.value = choice;
  button.checked = (state.answers[pair.name] || {})[question.name] === choice;
  button.addEventListener("change", () => {
    state.answers[pair.name] = { ...state.answers[pair.name], [question.name]: choice };
    keep();
    element("next").disabled = !answered(pair);
  });
  label.append(button, ` ${WORDS[choice]}`);
  return label;
}

function showQuestions(pair) {
  const fields = study.questions.map((question) => {
    const field = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = question.text;
    field.append(legend, ...CHOICES.map((choice) => choiceOf(pair, question, choice)));
    return field;
  });
  element("questions").replaceChildren(...fields);
}

function showPair(number) {
  place = number;
  const pair = study.pairs[place];
  showConcepts(pair);
  element("text").textContent = pair.text;
  element("left").src = pair.left;
  element("right").src = pair.right;
  showQuestions(pair);
  element("place").textContent = `Pair ${place + 1} of ${study.pairs.length}`;
  element("progress").max = study.pairs.length;
  element("progress").value = place;
  element("judge").dataset.pair = pair.name;
  element("back").disabled = place === 0;
  element("next").disabled = !answered(pair);
  show("judge");
}

function result() {
  return JSON.stringify(
    {
      format: "cdkit-preference-answers-1",
      study: study.study,
      rater: state.rater,
      finished: open() < 0,
      answers: state.answers,
    },
    null,
    1,
  );
}

function showEnd() {
  element("answers").value = result();
  show("end");
}

function proceed() {
  const next = open();
  if (next < 0) showEnd();
  else showPair(next);
}

element("number").textContent = String(study.pairs.length);
element("begin").addEventListener("click", () => {
  state.rater = element("rater").value.trim() || state.rater;
  keep();
  proceed();
});
element("next").addEventListener("click", () => {
  if (place + 1 < study.pairs.length && answered(study.pairs[place + 1])) showPair(place + 1);
  else proceed();
});
element("back").addEventListener("click", () => showPair(place - 1));
element("again").addEventListener("click", () => showPair(0));
element("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([result()], { type: "application/json" }));
  const name = state.rater.replace(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 40) || "rater";
  link.download = `answers-${study.study.slice(0, 6)}-${name}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});
if (Object.keys(state.answers).length) {
  element("rater").value = state.rater.startsWith("rater-") ? "" : state.rater;
  element("begin").textContent = "Go on";
}
