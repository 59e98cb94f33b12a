// Tables that sort on a click on a heading (stable, missing values last) and filter by text.

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector(".sorter").addEventListener("click", () => sortTable(table, heads, column));
    });
  }
  for (const input of document.querySelectorAll("input[data-filters]")) {
    input.addEventListener("input", () => filterTables(input));
  }
  for (const group of document.querySelectorAll("[data-switches]")) {
    for (const button of group.children) button.addEventListener("click", () => switchTable(group, button));
  }
}

function sortTable(table, heads, column) {
  const head = heads[column];
  const numeric = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  // Numbers sort from the largest, names from A; a second click reverses the order.
  const first = numeric ? "descending" : "ascending";
  const order = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
  for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.sort;
  const rows = [...body.rows].map((row, position) => ({ row, position, key: key(row) }));
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    if ((a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1;
    const difference = numeric ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, "en", { numeric: true });
    return sign * difference || a.position - b.position;
  });
  body.append(...rows.map((entry) => entry.row));
}

function filterTables(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const host = document.getElementById(input.dataset.filters);
  let shown = 0;
  for (const row of host.querySelectorAll("tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    if (!row.hidden && !row.closest("[hidden]")) shown += 1;
  }
  host.querySelector("[role=status]").textContent = words.length ? `${shown} rows` : "";
}

function switchTable(group, button) {
  for (const other of group.children) {
    other.setAttribute("aria-pressed", other === button);
    document.getElementById(other.dataset.table).hidden = other !== button;
  }
  const input = document.querySelector(`input[data-filters="${group.dataset.switches}"]`);
  if (input) filterTables(input);
}
