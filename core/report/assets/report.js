// The galleries of a report: filters, a threshold in place of the run's own, pages of cards, a larger view; and,
// where the page is served, its renewal while the run goes on. Texts are set as text, never as markup.
"use strict";
(() => {
  const PAGE = 60;
  const POLL = 3000;
  // A training logs all the time, and a page is not made for nothing.
  const RENEW = 30000;
  // Set where the page is served: what the page shows.
  const state = document.body.dataset.state;
  // Where a served page keeps what was set while it is loaded anew.
  const saved = (name) => "diffaug-report-" + name;

  const take = (name) => {
    const text = sessionStorage.getItem(saved(name));
    sessionStorage.removeItem(saved(name));
    return text;
  };

  const element = (name, classes, text) => {
    const made = document.createElement(name);
    if (classes) made.className = classes;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const number = (value) => (value === null ? "–" : value.toFixed(3));

  // The rule of `Verdict::accepted_above`.
  const passes = (card, threshold) =>
    card.limit !== null && card.score !== null && card.score > threshold && !card.fails_otherwise;

  const picture = (card) => {
    if (card.picture === null) return element("span", "none", "no picture is kept");
    const image = element("img");
    image.src = card.picture;
    image.width = 384;
    image.height = 96;
    image.loading = "lazy";
    image.decoding = "async";
    image.alt =
      "Candidate " + card.index + ", " + card.verdict +
      ": background, wanted outline, painted, wanted and found outlines";
    return image;
  };

  const words = (card) => {
    const made = element("div", "words");
    const head = element("p", "verdict " + (card.verdict === "accepted" ? "accepted" : "rejected"));
    const sign = card.verdict === "accepted" ? "✓ " : "✗ ";
    head.append(element("span", "name", sign + card.verdict));
    const limit = card.limit === null ? "" : " (limit " + card.limit + ")";
    head.append(element("span", "score", "score " + number(card.score) + limit));
    made.append(head);
    if (card.prompt) made.append(element("p", "prompt", card.prompt));
    if (card.reason) made.append(element("p", "reason", card.reason));
    const measures = card.measures.map(([name, value]) => name + " " + number(value));
    const facts = ["no. " + card.index, card.id, "seed " + card.seed];
    if (card.size) facts.push("size " + card.size);
    made.append(element("p", "small", facts.concat(measures).join(" · ")));
    return made;
  };

  class Gallery {
    constructor(root) {
      this.root = root;
      this.form = root.querySelector(".filters");
      this.list = root.querySelector(".cards");
      this.count = root.querySelector(".count");
      this.passing = root.querySelector(".passing");
      this.pager = root.querySelector(".pager");
      this.slider = this.form.elements.namedItem("threshold");
      const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      this.cards = data.cards;
      for (const card of this.cards) {
        const texts = [card.prompt, card.id, card.reason, card.seed, card.tags.join(" ")];
        card.text = texts.join("\n").toLowerCase();
      }
      this.page = 0;
      this.restore();
      this.form.addEventListener("submit", (event) => event.preventDefault());
      this.form.addEventListener("input", () => {
        this.page = 0;
        this.show();
      });
      this.pager.addEventListener("click", (event) => this.turn(event));
      this.show();
    }

    value(name) {
      return this.form.elements.namedItem(name).value;
    }

    // What the filters leave, in the order that is asked for.
    filter() {
      const threshold = this.slider ? Number(this.slider.value) : 0;
      const [verdict, size, tag] = ["verdict", "size", "tag"].map((name) => this.value(name));
      const search = this.value("search").trim().toLowerCase();
      const wanted = {
        all: () => true,
        accepted: (card) => card.verdict === "accepted",
        rejected: (card) => card.verdict !== "accepted",
        passes: (card) => passes(card, threshold),
        fails: (card) => card.limit !== null && !passes(card, threshold),
      }[verdict];
      const left = this.cards.filter(
        (card) =>
          wanted(card) &&
          (size === "all" || card.size === size) &&
          (tag === "all" || card.tags.includes(tag)) &&
          (search === "" || card.text.includes(search)),
      );
      const score = (card, none) => (card.score === null ? none : card.score);
      const order = this.value("sort");
      if (order === "best") left.sort((one, other) => score(other, -Infinity) - score(one, -Infinity));
      if (order === "worst") left.sort((one, other) => score(one, Infinity) - score(other, Infinity));
      return left;
    }

    show() {
      this.left = this.filter();
      this.pages = Math.max(1, Math.ceil(this.left.length / PAGE));
      this.page = Math.min(this.page, this.pages - 1);
      const first = this.page * PAGE;
      const shown = this.left.slice(first, first + PAGE);
      this.list.replaceChildren(...shown.map((card, place) => this.card(card, first + place)));
      const range = shown.length === 0 ? "none" : first + 1 + " to " + (first + shown.length);
      this.count.textContent =
        this.left.length + " of " + this.cards.length + " candidates match; shown: " + range;
      this.pager.hidden = this.pages === 1;
      this.pager.querySelector(".page").textContent = "page " + (this.page + 1) + " of " + this.pages;
      for (const button of this.pager.querySelectorAll("button")) {
        const back = ["first", "previous"].includes(button.dataset.go);
        button.disabled = back ? this.page === 0 : this.page === this.pages - 1;
      }
      if (this.slider) {
        const judged = this.cards.filter((card) => card.limit !== null);
        const threshold = Number(this.slider.value);
        const passing = judged.filter((card) => passes(card, threshold)).length;
        this.passing.textContent =
          passing + " of " + judged.length + " would pass above " + threshold.toFixed(2);
      }
    }

    card(card, place) {
      const made = element("li");
      const open = element("button", "open");
      open.type = "button";
      if (card.picture === null) open.disabled = true;
      open.append(picture(card));
      open.addEventListener("click", () => viewer.open(this, place));
      made.append(open, words(card));
      return made;
    }

    turn(event) {
      const go = event.target.dataset.go;
      if (!go) return;
      const to = { first: 0, previous: this.page - 1, next: this.page + 1, last: this.pages - 1 };
      this.page = Math.min(Math.max(to[go], 0), this.pages - 1);
      this.show();
      this.root.scrollIntoView();
      // A button that was just disabled would lose the focus.
      const ours = this.pager.querySelector('[data-go="' + go + '"]');
      if (ours.disabled) this.pager.querySelector("button:not(:disabled)").focus();
    }

    save() {
      const values = {};
      for (const field of this.form.elements) if (field.name) values[field.name] = field.value;
      return { page: this.page, values };
    }

    // What was set before the page was loaded anew by itself.
    restore() {
      const text = state === undefined ? null : take("gallery-" + this.root.dataset.run);
      if (text === null) return;
      const { page, values } = JSON.parse(text);
      this.page = page;
      for (const [name, value] of Object.entries(values)) {
        const field = this.form.elements.namedItem(name);
        const known = field && (field.tagName !== "SELECT" || [...field.options].some((one) => one.value === value));
        if (known) field.value = value;
      }
    }
  }

  // A candidate at a larger size; the arrow keys go on.
  const viewer = {
    dialog: document.querySelector(".viewer"),
    open(gallery, place) {
      this.gallery = gallery;
      this.show(place);
      if (!this.dialog.open) this.dialog.showModal();
    },
    show(place) {
      const all = this.gallery.left;
      this.place = Math.min(Math.max(place, 0), all.length - 1);
      const card = all[this.place];
      this.dialog.querySelector(".shown").replaceChildren(picture(card), words(card));
    },
    go(where) {
      if (where === "previous") this.show(this.place - 1);
      if (where === "next") this.show(this.place + 1);
      if (where === "close") this.dialog.close();
    },
  };
  viewer.dialog.addEventListener("click", (event) => viewer.go(event.target.dataset.go));
  viewer.dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") viewer.go("previous");
    if (event.key === "ArrowRight") viewer.go("next");
  });

  const galleries = [...document.querySelectorAll(".gallery")].map((root) => new Gallery(root));

  // Where the page is served: asks how far the run is, and loads the page anew when it has gone on, unless
  // somebody is about to type or looks at a candidate.
  const live = document.querySelector(".live");
  const details = () => [...document.querySelectorAll("details")];
  const busy = () =>
    viewer.dialog.open || document.hidden || document.activeElement?.closest(".filters") !== null;
  const renew = () => {
    for (const gallery of galleries) {
      const key = saved("gallery-" + gallery.root.dataset.run);
      sessionStorage.setItem(key, JSON.stringify(gallery.save()));
    }
    const open = details().map((one) => one.open);
    sessionStorage.setItem(saved("open"), JSON.stringify(open));
    location.reload();
  };
  const ask = async () => {
    try {
      const found = await fetch("state.json", { cache: "no-store" });
      if (!found.ok) throw new Error(await found.text());
      const answer = await found.json();
      const changed = answer.state !== state;
      if (changed && !busy() && performance.now() > RENEW) return renew();
      live.textContent = "live: " + answer.text + (changed ? "; the page is renewed when you are done here" : "");
    } catch (error) {
      // Without an answer there is no sentence but the browser's own.
      live.textContent = error instanceof TypeError ? "the run is no longer served here" : error.message;
    }
    setTimeout(ask, POLL);
  };
  if (state !== undefined) {
    const open = JSON.parse(take("open") ?? "[]");
    details().forEach((one, place) => (one.open = open[place] ?? one.open));
    ask();
  }
})();
