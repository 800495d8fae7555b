"use strict";
// Shows the values under the pointer. Text goes in as textContent only: labels are not trusted.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const tip = figure.querySelector(".tip");
  const cursor = svg.querySelector(".cursor");
  const line = (text, colour) => {
    const row = document.createElement("div");
    if (colour !== null) {
      const mark = document.createElement("i");
      mark.className = "c" + colour;
      row.append(mark);
    }
    row.append(text);
    return row;
  };
  const nearest = (xs, step) => {
    let best = 0;
    xs.forEach((x, i) => { if (Math.abs(x - step) < Math.abs(xs[best] - step)) best = i; });
    return best;
  };
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("x1", -9);
    cursor.setAttribute("x2", -9);
  };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * chart.width;
    const [from, to] = chart.px;
    if (at < from - 6 || at > to + 6) { hide(); return; }
    const step = chart.x[0] + (at - from) / (to - from) * (chart.x[1] - chart.x[0]);
    const here = chart.series[0].x[nearest(chart.series[0].x, step)];
    const px = from + (here - chart.x[0]) / (chart.x[1] - chart.x[0]) * (to - from);
    cursor.setAttribute("x1", px);
    cursor.setAttribute("x2", px);
    const rows = [line("step " + here, null)];
    for (const series of chart.series) {
      const value = series.y[nearest(series.x, here)];
      rows.push(line(series.label + "  " + (value === null ? "none" : value), series.colour));
    }
    tip.replaceChildren(...rows);
    tip.hidden = false;
    const left = px / chart.width * box.width;
    tip.style.left = left > box.width / 2 ? "" : left + 12 + "px";
    tip.style.right = left > box.width / 2 ? box.width - left + 12 + "px" : "";
  });
}
