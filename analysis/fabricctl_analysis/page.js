// The time controls: every plot shares the range named "time".
"use strict";
(function () {
  function range() {
    const shown = window.Bokeh && Bokeh.documents[0];
    return shown ? shown.get_model_by_name("time") : null;
  }
  function show(begin, end) {
    const time = range();
    if (!time) return;
    const [low, high] = time.bounds;
    const width = Math.min(Math.max(end - begin, 0.02), high - low);
    const start = Math.min(Math.max(begin, low), high - width);
    time.setv({ start: start, end: start + width });
  }
  function move(action) {
    const time = range();
    if (!time) return;
    const width = time.end - time.start, middle = (time.start + time.end) / 2;
    if (action === "all") show(time.bounds[0], time.bounds[1]);
    else if (action === "in") show(middle - width / 4, middle + width / 4);
    else if (action === "out") show(middle - width, middle + width);
    else if (action === "left") show(time.start - width / 3, time.end - width / 3);
    else if (action === "right") show(time.start + width / 3, time.end + width / 3);
  }
  document.addEventListener("click", function (event) {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.time) move(button.dataset.time);
    if (button.dataset.begin) {
      const begin = Number(button.dataset.begin), end = Number(button.dataset.end);
      const around = Math.max((end - begin) * 2, 2000);
      show(begin - around, end + around);
      document.getElementById("timeline").scrollIntoView({ behavior: "smooth" });
    }
  });
  // A4 between the margins that page.css sets is 186 mm: 700 CSS pixels.
  function fitPaper() {
    const main = document.querySelector("main");
    const figure = main && main.querySelector("figure");
    if (!figure || window.matchMedia("print").matches) return;
    const ratio = Math.min(1, 700 / Math.max(1, figure.clientWidth));
    document.documentElement.style.setProperty("--to-paper", String(ratio));
  }
  window.addEventListener("resize", fitPaper);
  document.addEventListener("DOMContentLoaded", fitPaper);
  // Under a finger a drag scrolls the page; the buttons zoom.
  if (window.matchMedia("(pointer: coarse)").matches) {
    document.addEventListener("DOMContentLoaded", function () {
      const timer = setInterval(function () {
        if (!range()) return;
        clearInterval(timer);
        for (const model of Bokeh.documents[0]._all_models.values()) {
          if (model.type === "Toolbar") model.active_drag = null;
        }
      }, 100);
    });
  }
})();
