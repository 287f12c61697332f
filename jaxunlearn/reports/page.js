"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const status = document.getElementById(table.dataset.status);
  const collator = new Intl.Collator(undefined, { numeric: true });
  const valueOf = (row, column) => row.cells[column].dataset.value;
  const compare = (column, down) => (one, two) => {
    const [a, b] = [valueOf(one, column), valueOf(two, column)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const order = heads[column].dataset.numeric ? Number(a) - Number(b) : collator.compare(a, b);
    return down ? -order : order;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort(compare(column, down)));
      status.textContent = `Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}.`;
    });
  });
}
