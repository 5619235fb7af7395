// Click a heading to sort the rows of its table; reference rows stay on top.
document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("th[data-column]").forEach((heading) => {
    heading.tabIndex = 0;
    const sort = () => {
      const column = Number(heading.dataset.column);
      const descending = heading.getAttribute("aria-sort") === "ascending";
      const body = table.tBodies[table.tBodies.length - 1];
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const difference = x - y;
        const result = Number.isNaN(difference) ? x.localeCompare(y) : difference;
        return descending ? -result : result;
      };
      body.append(...[...body.rows].sort(order));
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
});
