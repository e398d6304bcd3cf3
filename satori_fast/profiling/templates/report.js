// Dragging scrolls the page on a touch screen, where it would otherwise zoom the chart.
const isTouch = matchMedia("(pointer: coarse)").matches;
const groups = JSON.parse(document.getElementById("chart-data").textContent);

function addFigure(grid, chart) {
  const figure = grid.appendChild(document.createElement("figure"));
  figure.appendChild(document.createElement("figcaption")).textContent = chart.title;
  return figure.appendChild(document.createElement("div"));
}

for (const [name, charts] of Object.entries(groups)) {
  const grid = document.getElementById(`charts-${name}`);
  // All places first: the first chart would be as wide as the page as long as it is alone.
  const places = charts.map((chart) => addFigure(grid, chart));
  for (const [i, chart] of charts.entries()) {
    const {xaxis, yaxis, ...layout} = chart.layout;
    Plotly.newPlot(places[i], chart.data, {
      ...layout, xaxis: {automargin: true, ...xaxis}, yaxis: {automargin: true, ...yaxis},
      bargap: 0.35, dragmode: isTouch ? false : "zoom", showlegend: true, hovermode: "closest",
      margin: {l: 40, r: 12, t: 8, b: 24},
      legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom"},
      font: {family: "system-ui, sans-serif", size: 12},
    }, {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
