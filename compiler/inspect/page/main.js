// Title, theme and tabs; then everything begins.

const VIEWS = { kernels: kernelsView, graph: graphView, memory: memoryView, stages: stagesView };
const themeWatchers = [];

/** Goes to a view; act: once it is to be seen. */
function openView(name, act) {
  for (const other of Object.keys(VIEWS)) {
    byId(other).hidden = other !== name;
    const tab = byId(`tab-${other}`);
    tab.setAttribute("aria-selected", other === name);
    tab.tabIndex = other === name ? 0 : -1;
  }
  if (narrow.matches && !details.hidden) closeDetails();
  if (act) requestAnimationFrame(() => requestAnimationFrame(act));
}

function summary() {
  const parts = [`${plural(facts.nodes, "node")} → ${plural(facts.kernels.length, "kernel")}`, `arena ${bytes(facts.memory.arena)}`];
  const p = facts.profile;
  if (p) parts.push(`${time(p.seconds)} on ${plural(p.limits.threads, "thread")}`, `${percent(p.of_limit)} of the roofline`);
  return [...parts, facts.target, facts.numerics].join(" · ");
}

/** Follows the system until the button chooses. */
function themeButton() {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const button = byId("theme");
  const changed = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
    for (const watch of themeWatchers) watch();
  };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; changed(); });
  system.addEventListener("change", changed);
  changed();
}

byId("name").textContent = facts.name;
byId("summary").textContent = summary();
arrowKeys(byId("tabs"));
for (const [name, make] of Object.entries(VIEWS)) {
  make(byId(name));
  byId(`tab-${name}`).addEventListener("click", () => openView(name));
}
themeButton();
openView("kernels");
document.documentElement.dataset.ready = "";
