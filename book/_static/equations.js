/* An equation that is wider than its room scrolls by itself, by finger, mouse and keyboard. */
(() => {
  const WIDE = "wide";
  function fit() {
    const all = [...document.querySelectorAll(".math")];
    for (const equation of all) {
      equation.classList.remove(WIDE);
      equation.removeAttribute("tabindex");
    }
    const wide = all.filter(equation => {
      if (equation.tagName === "DIV") return equation.scrollWidth > equation.clientWidth;
      const room = equation.closest("p, li, dd");  // a table scrolls as a whole
      return room && !equation.closest("table") && equation.offsetWidth > room.clientWidth;
    });
    for (const equation of wide) {
      equation.classList.add(WIDE);
      equation.tabIndex = 0;
    }
  }
  addEventListener("load", () => {
    fit();
    addEventListener("resize", fit);
    document.addEventListener("toggle", fit, true);  // what was folded had no width
  });
})();
